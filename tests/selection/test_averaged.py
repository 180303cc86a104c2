"""Averages of softmax outputs, on masks of a few voxels whose DSC is counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.errors import DataError
from fednnunet.models.model_folder import ModelFolder
from fednnunet.selection import averaged
from fednnunet.selection.averaged import FoldOutputs, HeldOut, averaged_scores, mean_dsc, with_averages
from fednnunet.selection.node_disk import read_scores
from fednnunet.selection.sources import Sources, scores_of

DATASET = "Dataset101_X"
MODEL = Path("nnUNet_results") / DATASET / "nnUNetTrainer__nnUNetPlans__2d"
PLANS = {"image_reader_writer": "SimpleITKIO", "configurations": {}, "plans_name": "nnUNetPlans"}
REFERENCE = np.array([[[1, 1, 0, 0]]], np.uint8)


def write_model(node: Path, foreground: Mapping[str, list[float]], dice: float) -> ModelFolder:
    """A model of two folds of three cases each, with saved outputs: probability of the tumour in four voxels."""
    folder = node / MODEL
    references = node / "nnUNet_preprocessed" / DATASET / "gt_segmentations"
    references.mkdir(parents=True)
    for number, (case, probability) in enumerate(foreground.items()):
        fold = folder / f"fold_{number % 2}" / "validation"
        fold.mkdir(parents=True, exist_ok=True)
        tumour = np.array([[probability]], np.float32)
        np.savez_compressed(fold / f"{case}.npz", probabilities=np.stack([1 - tumour, tumour]))
        sitk.WriteImage(sitk.GetImageFromArray(REFERENCE), str(references / f"{case}.nii.gz"))
    for number in range(2):
        cases = [case for place, case in enumerate(foreground) if place % 2 == number]
        entries = [
            {"metrics": {"1": {"Dice": dice, "n_pred": 1, "n_ref": 2}}, "reference_file": f"/x/{case}.nii.gz"}
            for case in cases
        ]
        (folder / f"fold_{number}" / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": entries}))
        (folder / f"fold_{number}" / "checkpoint_final.pth").touch()
    (folder / "plans.json").write_text(json.dumps(PLANS))
    description = {"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return ModelFolder(folder, node.name, *MODEL.name.split("__"), ("0", "1"))


def six(probability: list[float]) -> dict[str, list[float]]:
    return {f"case_{number}": probability for number in range(6)}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[ModelFolder, ModelFolder]:
    """One model finds the first voxel of two, the other the second and a wrong one: DSC 2/3 and 2/4."""
    first = write_model(tmp_path / "a" / "nodes" / "Oslo", six([0.9, 0.4, 0.1, 0.1]), 2 / 3)
    second = write_model(tmp_path / "b" / "nodes" / "Oslo", six([0.2, 0.8, 0.6, 0.1]), 2 / 4)
    return first, second


def held_out(models: ModelFolder, *others: ModelFolder) -> HeldOut:
    return HeldOut(models, [models, *others])


def test_probabilities_are_averaged_not_masks(pair: tuple[ModelFolder, ModelFolder]) -> None:
    # 0.55, 0.6, 0.35, 0.1: both voxels of the reference and no other.
    mean = averaged_scores(pair, held_out(*pair))
    assert mean["dsc"].to_list() == [1.0] * 6
    assert sorted(mean["case"]) == [f"case_{number}.nii.gz" for number in range(6)]
    pieces = averaged_scores(pair[:1], held_out(pair[0]))
    assert pieces["dsc"].to_list() == pytest.approx([2 / 3] * 6)
    assert set(zip(pieces["fold"], pieces["case"], strict=True)) == set(
        zip(*(read_scores(pair[0])[column] for column in ("fold", "case")), strict=True)
    )


def segment_as(foreground: Mapping[str, list[float]]) -> Callable[[FoldOutputs, str], np.ndarray]:
    """A model of each hospital that has this probability of the tumour in every case that it segments."""

    def predict(outputs: FoldOutputs, case: str) -> np.ndarray:
        tumour = np.array([[foreground.get(outputs.models.node_folder.name, [0.0] * 4)]], np.float32)
        return np.stack([1 - tumour, tumour])

    return predict


@pytest.mark.parametrize("is_one", [True, False])
def test_averages_and_ensembles_are_further_candidates(
    pair: tuple[ModelFolder, ModelFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_one: bool
) -> None:
    other = [
        write_model(tmp_path / "a" / "nodes" / "Porto", six([0.9, 0.9, 0.1, 0.1]), 2 / 3),
        write_model(tmp_path / "b" / "nodes" / "Porto", six([0.2, 0.8, 0.6, 0.1]), 2 / 4),
    ]
    # What Porto's models have saved is of Porto's cases, which have the same names; Oslo's are segmented by them.
    monkeypatch.setattr(FoldOutputs, "_predict", segment_as({"Porto": [0.0, 0.9, 0.1, 0.1]}))
    asked: list[Sequence[ModelFolder]] = []
    monkeypatch.setattr(averaged, "is_shared", lambda folders, folds: asked.append(folders) or is_one)
    models = {("local", 0, "Oslo"): [pair[0]], ("asym", 0, "Oslo"): [pair[1]]}
    models |= {("local", 0, "Porto"): [other[0]], ("asym", 0, "Porto"): [other[1]]}
    sources = Sources("X", scores_of(read_scores(pair[0])), ["Oslo", "Porto"], models)
    told: list[str] = []
    found = with_averages(sources, True, told.append)
    by_name = found.scores.cases.groupby(["strategy", "node"])["dsc"].mean()
    assert by_name["local + asym", "Oslo"] == 1.0
    # (0.9 + 0) / 2, (0.4 + 0.9) / 2: one voxel of two.
    assert by_name["local ensemble", "Oslo"] == pytest.approx(2 / 3)
    assert by_name["asym", "Oslo"] == 0.5
    assert told[0] == "Oslo, seed 0: local + asym"
    assert found.models["local ensemble", 0, "Porto"] == [other[0], pair[0]], "the hospital's own first"
    assert ("asym ensemble" in found.scores.cases["strategy"].to_list()) is not is_one
    assert asked == [[pair[1], other[1]]] * 2, "models that were trained alone need not be compared"
    without = with_averages(sources, False)
    assert set(without.scores.cases["strategy"]) == {"local", "asym", "local + asym"}


def test_models_that_are_elsewhere_are_named(pair: tuple[ModelFolder, ModelFolder]) -> None:
    models = {("local", 0, "Oslo"): [pair[0]], ("asym", 0, "Oslo"): [pair[1]], ("local", 0, "Porto"): [pair[0]]}
    sources = Sources("X", scores_of(read_scores(pair[0])), ["Oslo", "Porto"], models)
    with pytest.raises(DataError, match="models of asym at Porto are not on this disk; leave out --average"):
        with_averages(sources, False)
    alone = Sources("X", sources.scores, ["Oslo"], {("local", 0, "Oslo"): [pair[0]]})
    with pytest.raises(DataError, match="local and another candidate must be on this disk"):
        with_averages(alone, False)


def test_unlike_labels_and_damaged_outputs_are_refused(pair: tuple[ModelFolder, ModelFolder]) -> None:
    saved = pair[1].path / "fold_1" / "validation" / "case_1.npz"
    whole = saved.read_bytes()
    for content in (b"PK", whole[: len(whole) // 2]):
        saved.write_bytes(content)
        with pytest.raises(DataError, match=r"case_1\.npz cannot be read: .*; remove it, and let its case"):
            averaged_scores(pair, held_out(*pair))
    np.savez_compressed(saved, probabilities=np.full((2, 1, 1, 4), np.nan, np.float32))
    with pytest.raises(DataError, match=r"case_1\.npz holds NaN or infinity"):
        averaged_scores(pair, held_out(*pair))
    description = json.loads((pair[1].path / "dataset.json").read_text())
    description["labels"]["oedema"] = 2
    (pair[1].path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="have unlike labels: their outputs cannot be averaged"):
        averaged_scores(pair, held_out(*pair))


def test_outputs_of_another_grid_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "Oslo", six([0.9, 0.1, 0.1]), 0.5)
    with pytest.raises(DataError, match=r"Oslo/.*outputs have shape \(2, 1, 1, 3\), and \(2, 1, 1, 4\) belong"):
        averaged_scores([model], held_out(model))
    other = write_model(tmp_path / "b" / "Oslo", six([0.9, 0.1, 0.1, 0.1]), 0.5)
    with pytest.raises(DataError, match=r"outputs have shape \(2, 1, 1, 3\)"):
        averaged_scores([other, model], held_out(other, model))


def test_regions_empty_masks_and_ignored_voxels_count_as_nnunet_counts_them() -> None:
    reference, found = np.array([[[1, 2, 0, 3]]]), np.array([[[1, 1, 0, 1]]])
    # Label 1: TP 1, FP 1 (the last voxel is ignored): 2/3. Label 2: 0. Region (1, 2): 1. Label 4 is in neither: 1.
    assert mean_dsc(found, reference, ["1", "2", "(1, 2)", "4"], 3) == pytest.approx((2 / 3 + 0 + 1 + 1) / 4)
