"""Real training where centres have annotated different structures, by other names and in other values."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from tests.conftest import write_case
from tests.integration.conftest import Train, final_weights, result_folder
from tests.support.raw_datasets import centres_override, write_description

UNION = {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
CENTRES = {
    "Oslo": ("Dataset501_Oslo", {"liver": 1}, 5),
    "Porto": ("Dataset502_Porto", {"spleen": 1, "liver": 2, "ignore": 3}, 5),
    "Turin": ("Dataset503_Turin", {"milza": 1}, 5),
    "Riga": ("Dataset504_Riga", {"kidney": 1, "spleen": 2}, 2),
}
"""Centre to dataset, labels and cases; Riga is external."""
ANNOTATED = {"Oslo": {"liver"}, "Porto": {"liver", "spleen"}, "Turin": {"spleen"}, "Riga": {"spleen"}}
OVERRIDES = (
    centres_override({name: folder for name, (folder, *_) in CENTRES.items()}, external=["Riga"]),
    "task.labels=union",
    "task.rename_labels={Turin: {milza: spleen}}",
    "trainer.iterations=2",
)
INTENSITIES = {"liver": 60, "spleen": -60, "kidney": 120}
SHAPE = (5, 32, 32)


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every image holds all organs; a centre draws those that it has labels for, one does not look everywhere."""
    parent = tmp_path_factory.mktemp("partial") / "raw"
    for seed, (folder, labels, cases) in enumerate(CENTRES.values()):
        rng = np.random.default_rng(seed)
        for case in range(cases):
            image, drawn = rng.normal(100, 10, SHAPE), np.zeros(SHAPE)
            for place, (organ, intensity) in enumerate(INTENSITIES.items()):
                y, x = rng.integers(1, 4) + 9 * place, rng.integers(1, 20)
                box = np.s_[1:4, y : y + 7, x : x + 9]
                image[box] += intensity
                drawn[box] = labels.get("milza" if organ == "spleen" and "milza" in labels else organ, 0)
            drawn[..., 28:] = labels.get("ignore", 0)
            write_case(parent / folder, f"case_{case:03d}", image, drawn, (3.0, 1.0, 1.0))
        write_description(parent / folder, labels={"background": 0, **labels}, numTraining=cases)
    return parent


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def scored_labels(run: Path) -> dict[str, set[str]]:
    cases = pd.read_csv(run / "cases.csv")
    assert cases["dsc"].notna().all()
    return {str(node): set(labels) for node, labels in cases.groupby("node")["label"]}


def trained_labels(folder: Path) -> dict[str, int]:
    labels: dict[str, int] = json.loads((folder.parent / "dataset.json").read_text())["labels"]
    return labels


def test_one_network_learns_what_no_centre_has_annotated_alone(train: Train, partial: Path, tmp_path: Path) -> None:
    before, run = digests(partial), tmp_path / "run"
    keys = ("strategy=asym", "compute.num_devices=2", "task.pseudo_labels=1", *OVERRIDES)
    result = train(run, *keys, raw=partial)
    assert result.returncode == 0, result.stdout + result.stderr
    assert digests(partial) == before
    assert scored_labels(run) == ANNOTATED
    assert "Oslo liver; Porto liver and spleen; Turin spleen; Riga spleen" in result.stdout
    labelled = {path.parent.name for path in run.glob("nodes/*/node.log") if "pseudo-labels of" in path.read_text()}
    assert labelled == {"Oslo", "Turin"}, "Porto has annotated all, and Riga does not train"
    assert not list(run.rglob("pseudo_labels")), "training is over"

    weights = {node: final_weights(run, node) for node in ("Oslo", "Porto", "Turin")}
    heads = [name for name in weights["Oslo"] if "seg_layers" in name]
    assert {len(weights["Oslo"][name]) for name in heads} == {3}
    for node in ("Porto", "Turin"):
        assert all(torch.equal(weights["Oslo"][name], values) for name, values in weights[node].items())
    for node in weights:
        folder = result_folder(run, node)
        assert trained_labels(folder) == UNION
        summary = json.loads((folder / "validation" / "summary.json").read_text())
        assert set(summary["mean"]) == {str(UNION[label]) for label in ANNOTATED[node]}

    folder, out = result_folder(run, "Oslo"), tmp_path / "predicted"
    (scored,) = (folder / "validation").glob("*.nii.gz")
    images = tmp_path / "images"
    images.mkdir()
    name = scored.name.replace(".nii.gz", "_0000.nii.gz")
    (images / name).symlink_to(partial / CENTRES["Oslo"][0] / "imagesTr" / name)
    folders = {f"nnUNet_{part}": str(run / f"nodes/Oslo/nnUNet_{part}") for part in ("raw", "preprocessed", "results")}
    tool = Path(sys.executable).with_name("nnUNetv2_predict")
    arguments = f"-i {images} -o {out} -d {CENTRES['Oslo'][0]} -c 2d -f 0 -device cpu -npp 0 -nps 0".split()
    subprocess.run([tool, *arguments], check=True, capture_output=True, env={**os.environ, **folders}, timeout=300)
    assert json.loads((out / "dataset.json").read_text())["labels"] == UNION
    ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (scored, out / scored.name))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("strategy", "crossed"), [("local", True), ("centralized", False)])
def test_centres_alone_and_pooled_are_scored_by_what_each_has(
    train: Train, partial: Path, tmp_path: Path, strategy: str, crossed: bool
) -> None:
    before, run = digests(partial), tmp_path / "run"
    cross_centre = f"evaluation.cross_centre={str(crossed).lower()}"
    result = train(run, f"strategy={strategy}", cross_centre, *OVERRIDES, raw=partial)
    assert result.returncode == 0, result.stdout + result.stderr
    assert digests(partial) == before
    assert scored_labels(run) == ANNOTATED
    nodes = ["centralized"] if strategy == "centralized" else ["Oslo", "Porto", "Turin"]
    assert all(trained_labels(result_folder(run, node)) == UNION for node in nodes)


def test_unlike_labels_are_refused_unless_they_are_united(train: Train, partial: Path, tmp_path: Path) -> None:
    for strategy in ("asym", "centralized"):
        overrides = [text for text in OVERRIDES if text != "task.labels=union"]
        refused = train(tmp_path / strategy, f"strategy={strategy}", *overrides, raw=partial)
        assert refused.returncode == 2
        assert "disagree on labels in dataset.json" in refused.stderr


def test_a_label_that_cannot_be_renamed_is_named_before_anything_starts(
    train: Train, partial: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    refused = train(run, "strategy=asym", *OVERRIDES, "+task.rename_labels.Turin.milz=spleen", raw=partial)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: centre Turin: task.rename_labels.Turin.milz: labels in ")
    assert refused.stderr.endswith("dataset.json are background, milza; rename one of them\n")
    assert not (run / "nodes").exists()
