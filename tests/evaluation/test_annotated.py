"""Scores of cases whose centres have annotated some of the labels."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from fednnunet.datasets.raw import Case
from fednnunet.evaluation.metrics import SegmentationMetrics
from fednnunet.evaluation.score import HeldOutCase, score_cases
from fednnunet.evaluation.summary import write_summary

LABELS = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3}
ROW = {"Oslo": [0, 1, 1, 0, 0, 0], "Porto": [0, 0, 0, 2, 2, 0]}
"""References; the prediction is the same one at both centres, and right."""
PREDICTED = [0, 1, 1, 2, 2, 0]
ANNOTATED = {"Oslo": ["liver"], "Porto": ["spleen", "tumour"]}


def label_map(row: list[int]) -> np.ndarray:
    return np.array(row, dtype=np.uint8).reshape(1, 1, -1).repeat(2, axis=0)


class Reader:
    """References by centre."""

    def read_seg(self, file: str) -> tuple[np.ndarray, dict[str, Any]]:
        return label_map(ROW[Path(file).name])[None], {"spacing": (1.0, 1.0, 1.0)}


def test_a_label_is_scored_where_it_is_annotated_alone(caplog: pytest.LogCaptureFixture) -> None:
    cases = [HeldOutCase(centre, 0, f"{centre}__a", Case("a", (), Path(centre))) for centre in ROW]
    reader: Any = Reader()
    caplog.set_level("INFO")

    def scores(annotated: dict[str, list[str]]) -> dict[tuple[str, str], float | None]:
        found = score_cases(
            cases,
            lambda case: [(None, label_map(PREDICTED))],
            reader,
            LABELS,
            "mm",
            1.0,
            None,
            None,
            annotated,
        )
        return {(score.centre, score.label): score.dsc for score in found}

    assert scores(ANNOTATED) == {("Oslo", "liver"): 1.0, ("Porto", "spleen"): 1.0, ("Porto", "tumour"): 1.0}
    assert "this node's model, liver, of 1 cases: dsc 1, hd95 0" in caplog.text
    everywhere = scores({})
    assert everywhere["Oslo", "spleen"] == 0.0, "what would be said of a right segmentation"
    assert scores({"Oslo": ["liver"]}) == {("Oslo", "liver"): 1.0} | {
        (centre, label): dsc for (centre, label), dsc in everywhere.items() if centre == "Porto"
    }


def test_means_are_over_cases_that_were_scored() -> None:
    metrics = SegmentationMetrics(LABELS, 1.0)
    half, full = label_map([0, 1, 0, 0, 0, 0]), label_map(ROW["Oslo"])
    metrics(half, full, (1, 1, 1), ["liver"])
    metrics(full, full, (1, 1, 1), ["liver", "spleen"])
    metrics(full, full, (1, 1, 1), [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means = metrics.compute()
    assert set(means) == {"liver", "spleen"}
    assert means["liver"]["dsc"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.num_cases == {"liver": 2, "spleen": 1, "tumour": 0}


def summary(folder: Path, predicted: list[int], annotated: Any) -> dict[str, Any]:
    trainer: Any = SimpleNamespace(
        label_manager=LabelManager(LABELS, None),
        preprocessed_dataset_folder_base=str(folder),
        dataset_json={"file_ending": ".nii.gz", "labels": LABELS} | ({"annotated": annotated} if annotated else {}),
        plans_manager=SimpleNamespace(image_reader_writer_class=SimpleITKIO),
    )
    for centre, row in ROW.items():
        for part, values in (("gt_segmentations", row), ("validation", predicted)):
            path = folder / part / f"{centre}__case_001.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(label_map(values)), str(path))
    written = write_summary(trainer, folder / "validation", [f"{centre}__case_001" for centre in ROW])
    on_disk = json.loads((folder / "validation" / "summary.json").read_text())
    assert on_disk["foreground_mean"] == pytest.approx(written["foreground_mean"], nan_ok=True)
    return written


def test_nnunets_summary_is_of_annotated_labels_alone(tmp_path: Path) -> None:
    found = summary(tmp_path / "pooled", PREDICTED, ANNOTATED)
    by_case = {Path(case["prediction_file"]).name: case["metrics"] for case in found["metric_per_case"]}
    assert set(by_case["Oslo__case_001.nii.gz"]) == {1}
    assert set(by_case["Porto__case_001.nii.gz"]) == {2, 3}
    assert [found["mean"][label]["Dice"] for label in (1, 2)] == [1.0, 1.0]
    assert np.isnan(found["mean"][3]["Dice"]), "it is in no case, and was not segmented"
    assert found["foreground_mean"]["Dice"] == 1.0
    found = summary(tmp_path / "one", PREDICTED, ["liver"])
    assert set(found["mean"]) == {1}
    assert found["mean"][1]["Dice"] == pytest.approx(0.5), "Porto's case has none"


def test_nnunets_summary_of_a_centre_with_all_labels_counts_each(tmp_path: Path) -> None:
    found = summary(tmp_path, PREDICTED, None)
    assert found["mean"][2]["Dice"] == pytest.approx(0.5), "0 for a segmentation where the reference has none"
    assert np.isnan(found["foreground_mean"]["Dice"]), "as nnU-Net's, over all labels"
