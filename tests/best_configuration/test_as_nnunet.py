"""The decision of sums over nodes is nnU-Net's own on all nodes' cases in one place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.evaluation import find_best_configuration as nnunets
from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing

from fednnunet.best_configuration.decision import Decision, decide
from fednnunet.best_configuration.decision_files import inference_information
from fednnunet.best_configuration.node_models import nodes_of
from fednnunet.best_configuration.node_sums import sum_up
from fednnunet.best_configuration.sums import NodeSums, check_together, read_sums, write_sums
from tests.best_configuration.conftest import (
    DATASET,
    LABELS,
    PLANS_NAME,
    REGIONS,
    TRAINER,
    FakeNode,
    WriteRuns,
    identifier,
    random_node,
    write_image,
    write_model,
)

Pooled = Callable[..., tuple[dict[str, Any], Any]]


@pytest.fixture
def decide_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pooled:
    """nnU-Net's ``find_best_configuration`` on all nodes' cases: what it returns, and its post-processing."""
    root = tmp_path / "pooled"
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    for module in ("evaluation.find_best_configuration", "evaluation.accumulate_cv_results"):
        for name, folder in folders.items():
            monkeypatch.setattr(f"nnunetv2.{module}.{name}", str(root / folder), raising=False)
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(root / "results"))
    # A new process would take seconds of imports.
    monkeypatch.setattr("multiprocessing.get_context", lambda method: SimpleNamespace(Pool=ThreadPool))

    def pool(nodes: Mapping[str, FakeNode], folds: Sequence[int] = (0, 1), ensembles: bool = True) -> Any:
        preprocessed = root / "preprocessed" / DATASET
        configurations = list(next(iter(nodes.values())).segmentations)
        for name, node in nodes.items():
            for configuration in configurations:
                folder = root / "results" / DATASET / identifier(configuration)
                write_model(folder, node, configuration, folds, ensembles, prefix=f"{name}_")
            for case, reference in node.references.items():
                write_image(preprocessed / "gt_segmentations" / f"{name}_{case}.nii.gz", reference)
        plans = (root / "results" / DATASET / identifier(configurations[0]) / "plans.json").read_text()
        (preprocessed / f"{PLANS_NAME}.json").write_text(plans)
        models = [{"plans": PLANS_NAME, "configuration": name, "trainer": TRAINER} for name in configurations]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Mean of empty slice")
            best = nnunets.find_best_configuration(DATASET, models, ensembles, num_processes=1, folds=tuple(folds))
        return best, load_pickle(best["best_model_or_ensemble"]["postprocessing_file"])

    return pool


def told_by(runs: Sequence[Path], ensembles: bool = True, folder: Path | None = None) -> list[NodeSums]:
    """Sums of every node, written and read again where there is a folder."""
    told = [sum_up(models, node, None, ensembles, True) for node, models in nodes_of(runs).items()]
    if folder is not None:
        for sums in told:
            write_sums(folder / f"{sums.node}.json", sums)
        told = [read_sums(folder / f"{sums.node}.json") for sums in told]
    check_together([(sums.node, sums) for sums in told])
    return told


def assert_same(decision: Decision, pooled: tuple[dict[str, Any], Any]) -> None:
    best, (functions, arguments) = pooled
    ours = inference_information(decision, DATASET)
    assert list(ours["all_results"]) == list(best["all_results"])
    scores = [math.nan if score is None else score for score in ours["all_results"].values()]
    np.testing.assert_allclose(scores, list(best["all_results"].values()), rtol=0, atol=1e-14)
    chosen, theirs = ours["best_model_or_ensemble"], best["best_model_or_ensemble"]
    for key in ("result_on_crossval_pre_pp", "result_on_crossval_post_pp"):
        assert chosen[key] == pytest.approx(theirs[key], rel=0, abs=1e-14)
    assert chosen["selected_model_or_models"] == theirs["selected_model_or_models"]
    assert ours["considered_models"] == list(best["considered_models"])
    assert (ours["folds"], ours["ensembling_allowed"]) == (list(best["folds"]), best["ensembling_allowed"])
    labels = [one["labels_or_regions"] for one in arguments]
    as_tuples = [tuple(one) if isinstance(one, list | tuple) else (one,) for one in labels]
    assert [step.labels for step in decision.steps if step.kept] == as_tuples
    # What it does, too.
    segmentation = np.random.default_rng(0).integers(0, 4, (3, 12, 12)).astype(np.uint8)
    expected = apply_postprocessing(segmentation, functions, arguments)
    np.testing.assert_array_equal(decision.postprocessing.apply(segmentation), expected)


TASKS: dict[str, dict[str, Any]] = {
    "labels": {"labels": LABELS},
    "one label": {"labels": {"background": 0, "tumour": 1}},
    "regions": {"labels": REGIONS},
    "ignore": {"labels": {**LABELS, "ignore": 3}},
    "regions and ignore": {"labels": {**REGIONS, "ignore": 4}},
    "ensemble of three": {"labels": LABELS, "configurations": {"2d": 1.0, "3d_fullres": 1.2, "3d_lowres": 1.1}},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_scores_choice_and_postprocessing_are_nnunets_on_the_pooled_cases(
    task: dict[str, Any], seed: int, write_runs: WriteRuns, decide_pooled: Pooled, tmp_path: Path
) -> None:
    nodes = {
        name: random_node(10 * seed + place, cases=cases, **task)
        for place, (name, cases) in enumerate((("Oslo", 5), ("Porto", 3), ("Riga", 1)))
    }
    runs = write_runs(nodes)
    told = told_by(runs, folder=tmp_path / "sums")
    assert [sums.num_cases for sums in told] == [5, 3, 1]
    assert_same(decide(told), decide_pooled(nodes))
