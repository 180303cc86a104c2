"""The previous stage of a cascade: label values that must mean the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fednnunet.errors import ConfigError
from fednnunet.training.cascade import check_labels

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def check(folder: Path, **earlier: int) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **earlier}}))
    check_labels(folder, LABELS, Path("runs/lowres"), "3d_lowres")


def test_values_that_mean_the_same_are_taken(tmp_path: Path) -> None:
    check(tmp_path, spleen=2, liver=1)
    check(tmp_path, Leber=1, Milz=2)


def test_another_name_is_another_label_where_values_follow_from_names(tmp_path: Path) -> None:
    check(tmp_path, kidney=1, spleen=2)
    given = (tmp_path, LABELS, Path("runs/lowres"), "3d_lowres")
    what = "it had the labels background, kidney, spleen, and this run has background, liver, spleen"
    with pytest.raises(ConfigError, match=f"3d_lowres segmented other labels: {what}"):
        check_labels(*given, united=True)
    check(tmp_path, spleen=2, liver=1)
    check_labels(*given, united=True)


@pytest.mark.parametrize(
    ("earlier", "what"),
    [
        ({"liver": 2, "spleen": 1}, "liver had the value 2 and has 1 now"),
        ({"kidney": 1, "liver": 2, "spleen": 3}, "liver had the value 2 and has 1 now"),
        ({"liver": 1}, "it had the labels background, liver, and this run has background, liver, spleen"),
    ],
)
def test_values_that_mean_something_else_are_refused(tmp_path: Path, earlier: dict[str, int], what: str) -> None:
    with pytest.raises(ConfigError, match=f"init.previous_stage=runs/lowres: 3d_lowres segmented other labels: {what}"):
        check(tmp_path, **earlier)


def test_a_model_that_does_not_say_what_it_segments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.json is missing or damaged"):
        check_labels(tmp_path, LABELS, Path("runs/lowres"), "3d_lowres")
