"""Run folders that cannot be compared: each is one line that names node, configuration and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fednnunet.best_configuration.node_models import nodes_of
from fednnunet.best_configuration.node_sums import sum_up
from fednnunet.errors import DataError
from tests.best_configuration.conftest import SHAPE, WriteRuns, identifier, random_node, write_image

Spoil = Callable[[Path], object]
MODEL = f"nodes/Porto/nnUNet_results/Dataset202_Porto/{identifier('3d_fullres')}"
CACHE = "nodes/Porto/nnUNet_preprocessed/Dataset202_Porto"


def change_labels(run: Path) -> None:
    path = run / MODEL / "dataset.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"labels": {"background": 0, "tumour": 1, "liver": 2}}))


def is_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no run": (lambda run: shutil.rmtree(run / "nodes"), "run_3d_fullres holds no checkpoint_final.pth"),
    "no node": (
        lambda run: shutil.rmtree(run / "nodes" / "Porto"),
        "run_3d_fullres has no finished fold of node Porto, which .*run_2d has",
    ),
    "two models": (
        lambda run: shutil.copytree(run / MODEL, run / MODEL.replace("3d_fullres", "2d")),
        "node Porto in .*run_3d_fullres has 2 models",
    ),
    "other labels": (change_labels, "labels of 2d of node Porto in .*run_2d is"),
    "dataset.json is no JSON": (
        lambda run: (run / MODEL / "dataset.json").write_text("["),
        "centre Porto: .*dataset.json is not JSON",
    ),
    "dataset.json of nothing": (
        lambda run: (run / MODEL / "dataset.json").write_text("{}"),
        "dataset.json has no field channel_names",
    ),
    "plans are no JSON": (lambda run: (run / MODEL / "plans.json").write_text("{"), "plans.json is not JSON"),
    "plans of nothing": (
        lambda run: (run / MODEL / "plans.json").write_text("{}"),
        "nnU-Net cannot segment by its plans.json and dataset.json, which are not as it wrote them: KeyError",
    ),
    "unfinished fold": (
        lambda run: (run / MODEL / "fold_1" / "checkpoint_final.pth").unlink(),
        "2d of node Porto in .* has finished folds 0, 1, 3d_fullres of node Porto in .* 0; finish them",
    ),
    "fold all": (
        lambda run: [shutil.rmtree(run / MODEL / "fold_1"), (run / MODEL / "fold_0").rename(run / MODEL / "fold_all")],
        "3d_fullres of node Porto in .* has finished no fold that holds cases out",
    ),
    "no segmentation": (
        lambda run: (run / MODEL / "fold_1" / "validation" / "case_1.nii.gz").unlink(),
        "fold 1 of 3d_fullres of node Porto in .* has no segmentation of case_1, which it holds out",
    ),
    "segmentation of a training case": (
        lambda run: shutil.copy(
            run / MODEL / "fold_0" / "validation" / "case_0.nii.gz", run / MODEL / "fold_1" / "validation"
        ),
        "fold 1 of 3d_fullres of node Porto in .* has a segmentation of case_0, which it does not hold out",
    ),
    "no softmax": (
        lambda run: (run / MODEL / "fold_1" / "validation" / "case_1.npz").unlink(),
        "3d_fullres of node Porto in .*run_3d_fullres has no softmax outputs of case_1.*save_probabilities=true",
    ),
    "softmax is cut": (
        lambda run: is_cut(run / MODEL / "fold_1" / "validation" / "case_1.npz"),
        "case_1.npz cannot be read",
    ),
    "softmax of other classes": (
        lambda run: np.savez(
            run / MODEL / "fold_1" / "validation" / "case_1.npz", probabilities=np.zeros((2, *SHAPE), dtype=np.float32)
        ),
        "case_1.npz has shape",
    ),
    "softmax is NaN": (
        lambda run: np.savez(
            run / MODEL / "fold_1" / "validation" / "case_1.npz", probabilities=np.full((3, *SHAPE), np.nan)
        ),
        "case_1.npz holds NaN",
    ),
    "softmax is a pickle": (
        lambda run: np.savez(
            run / MODEL / "fold_1" / "validation" / "case_1.npz", probabilities=np.array({"a": 1}, dtype=object)
        ),
        "case_1.npz cannot be read: Object arrays",
    ),
    "other grid": (
        lambda run: write_image(run / MODEL / "fold_1" / "validation" / "case_1.nii.gz", np.zeros((2, 5, 5))),
        r"case_1.nii.gz has shape \(2, 5, 5\), its reference",
    ),
    "segmentation is cut": (
        lambda run: is_cut(run / MODEL / "fold_1" / "validation" / "case_1.nii.gz"),
        "case_1.nii.gz is cut off",
    ),
    "no references": (
        lambda run: [shutil.rmtree(path) for path in run.parent.glob(f"run_*/{CACHE}")],
        "node Porto: its reference segmentations, .*gt_segmentations, are gone",
    ),
    "no reference": (
        lambda run: [path.unlink() for path in run.parent.glob(f"run_*/{CACHE}/gt_segmentations/case_1.nii.gz")],
        "case_1.nii.gz cannot be read",
    ),
    "splits of nothing": (
        lambda run: (run / CACHE / "splits_final.json").write_text("[1]"),
        "splits_final.json is no list of folds",
    ),
}


@pytest.mark.parametrize(("spoil", "problem"), SPOILT.values(), ids=SPOILT)
def test_what_cannot_be_compared_is_one_line(write_runs: WriteRuns, spoil: Spoil, problem: str) -> None:
    runs = write_runs({"Oslo": random_node(1, cases=1), "Porto": random_node(2, cases=2)})
    spoil(runs[1])
    with pytest.raises(DataError, match=problem) as raised:
        [sum_up(models, node, None, True, True) for node, models in nodes_of(runs).items()]
    assert "\n" not in str(raised.value)


def test_other_cases_held_out_are_named_where_splits_are_gone(write_runs: WriteRuns) -> None:
    runs = write_runs({"Porto": random_node(2, cases=2)})
    for path in (*runs[0].glob("nodes/*/*/*/splits_final.json"), *runs[1].glob("nodes/*/*/*/splits_final.json")):
        path.unlink()
    (runs[1] / MODEL.replace("202", "201") / "fold_1" / "validation" / "case_1.nii.gz").unlink()
    (models,) = nodes_of(runs).values()
    with pytest.raises(DataError, match="hold other cases out, such as case_1"):
        sum_up(models, "Porto", None, False, False)


def test_external_centres_and_chosen_folds_are_left_aside(write_runs: WriteRuns) -> None:
    runs = write_runs({"Oslo": random_node(1)})
    for run in runs:
        (run / "nodes" / "Riga" / "nnUNet_results").mkdir(parents=True)
    (models,) = nodes_of(runs).values()
    assert sum_up(models, "Oslo", None, False, False).num_cases == 4
    chosen = sum_up(models, "Oslo", [1], False, False)
    assert (chosen.num_cases, chosen.folds) == (2, [1])


def test_progress_is_told_case_by_case(write_runs: WriteRuns) -> None:
    (models,) = nodes_of(write_runs({"Oslo": random_node(1, cases=3)})).values()
    seen: list[tuple[int, int]] = []
    sum_up(models, "Oslo", None, True, True, advance=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
