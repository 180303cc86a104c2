"""Reader of ACOUSLIC-AI, on miniatures of the published download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.conversion.readers.acouslic import read_acouslic
from fednnunet.conversion.readers.aimix import read_aimix
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import DataError
from tests.support.ultrasound_downloads import (
    BOTH,
    EMPTY,
    FRAMES,
    ONLY_SUBOPTIMAL,
    Painted,
    make_acouslic,
    write_mask_stack,
    write_stack,
)


def frames(scan: ScanResult) -> dict[str, int | None]:
    return {case.name: case.label.frame for case in scan.cases}


def root_of(source: Path) -> Path:
    return source / "acouslic-ai-train-set"


def test_largest_mask_of_the_optimal_plane_is_the_case(acouslic: Path) -> None:
    scan = read_acouslic(acouslic)
    root = root_of(acouslic)
    assert scan.cases == (
        SourceCase(
            name=BOTH,
            centre="Sierra Leone",
            channels=(SourceImage(root / "images/stacked_fetal_ultrasound" / f"{BOTH}.mha", frame=6),),
            label=SourceImage(root / "masks/stacked_fetal_abdomen" / f"{BOTH}.mha", frame=6),
            label_values={1: "abdomen", 2: "abdomen"},
            patient="s0",
        ),
    )
    assert scan.left_out == (
        ConversionIssue(ONLY_SUBOPTIMAL, "no frame is annotated as the optimal plane", "Sierra Leone"),
        ConversionIssue(EMPTY, "no frame is annotated", "Sierra Leone"),
    )
    assert scan.problems == ()
    assert scan.file_ending == ".png"


def test_frames_are_chosen_as_the_option_says(acouslic: Path) -> None:
    assert frames(read_acouslic(acouslic, planes="optimal-first")) == {BOTH: 6, ONLY_SUBOPTIMAL: 3}
    largest = read_acouslic(acouslic, planes="largest")
    assert frames(largest) == {BOTH: 1, ONLY_SUBOPTIMAL: 3}
    assert [issue.name for issue in largest.left_out] == [EMPTY]


def test_the_frame_is_the_one_that_the_engine_cuts_out(acouslic: Path) -> None:
    (case,) = read_acouslic(acouslic).cases
    stack = sitk.ReadImage(str(case.label.path))
    assert case.label.frame is not None
    frame = sitk.GetArrayFromImage(stack[:, :, case.label.frame])
    assert np.unique(frame).tolist() == [0, 1]
    assert (frame == 1).sum() == 3 * 4


def test_listed_cases_are_the_ones_taken(acouslic: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.txt").write_text(f"{ONLY_SUBOPTIMAL}\n\nunheard-of\n")
    scan = read_acouslic(acouslic, planes="optimal-first", cases=tmp_path / "cases.txt")
    assert list(frames(scan)) == [ONLY_SUBOPTIMAL]
    assert [issue.name for issue in scan.left_out] == [BOTH, EMPTY]
    assert [issue.name for issue in scan.problems] == ["unheard-of"]
    with pytest.raises(DataError, match=r"cases: .* cannot be read"):
        read_acouslic(acouslic, cases=tmp_path / "none.txt")


def test_the_best_frame_of_a_subject_is_its_case(tmp_path: Path) -> None:
    masks: dict[str, Painted] = {
        "a": {0: (1, 2)},
        "b": {5: (1, 3), 6: (2, 5)},
        "c": {0: (2, 4)},
        "d": {0: (1, 1)},  # not in the table as anybody's
    }
    source = make_acouslic(tmp_path, masks, subjects=("007", "007", "007", ""))
    assert frames(read_acouslic(source)) == {"b": 5, "d": 0}
    assert frames(read_acouslic(source, planes="largest")) == {"b": 6, "d": 0}
    first = read_acouslic(source, planes="optimal-first")
    assert frames(first) == {"b": 5, "d": 0}, "a larger suboptimal plane is no better"
    assert [(issue.name, issue.reason) for issue in first.left_out] == [
        ("a", "subject 007 has a better frame in b"),
        ("c", "subject 007 has a better frame in b"),
    ]
    every = read_acouslic(source, planes="optimal-first", one_per="case")
    assert [(case.name, case.patient) for case in every.cases] == [
        ("a", "007"),
        ("b", "007"),
        ("c", "007"),
        ("d", "d"),
    ]


def test_stack_without_partner_is_a_problem(acouslic: Path) -> None:
    root = root_of(acouslic)
    (root / "masks/stacked_fetal_abdomen" / f"{BOTH}.mha").unlink()
    (root / "images/stacked_fetal_ultrasound" / f"{ONLY_SUBOPTIMAL}.mha").unlink()
    (root / "images/stacked_fetal_ultrasound" / f"{EMPTY}.mha").unlink()
    (root / "masks/stacked_fetal_abdomen" / f"{EMPTY}.mha").unlink()
    write_mask_stack(root / "masks/stacked_fetal_abdomen" / "extra.mha", {0: 1})
    write_stack(root / "images/stacked_fetal_ultrasound" / "extra.mha", np.ones((FRAMES, 6, 8)))
    scan = read_acouslic(acouslic)
    assert {issue.name: issue.reason for issue in scan.problems} == {
        BOTH: f"there is no {BOTH}.mha in masks/stacked_fetal_abdomen",
        ONLY_SUBOPTIMAL: f"there is no {ONLY_SUBOPTIMAL}.mha in images/stacked_fetal_ultrasound",
        EMPTY: f"there is no {EMPTY}.mha in images/stacked_fetal_ultrasound and masks/stacked_fetal_abdomen",
    }
    assert [(case.name, case.patient) for case in scan.cases] == [("extra", "extra")], "not in the table"


def test_stacks_of_other_length_or_damaged_are_problems(tmp_path: Path) -> None:
    source = make_acouslic(tmp_path, {name: {0: 1} for name in ("short", "flat", "cut", "torn", "fine")})
    images, masks = (
        root_of(source) / part for part in ("images/stacked_fetal_ultrasound", "masks/stacked_fetal_abdomen")
    )
    write_mask_stack(masks / "short.mha", {0: 1}, frames=FRAMES - 1)
    for folder in (images, masks):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 8), dtype=np.uint8)), str(folder / "flat.mha"))
    whole = (masks / "cut.mha").read_bytes()
    (masks / "cut.mha").write_bytes(whole[: len(whole) - 20])
    (images / "torn.mha").write_bytes(b"")
    scan = read_acouslic(source)
    assert list(frames(scan)) == ["fine"]
    problems = {issue.name: issue.reason for issue in scan.problems}
    assert list(problems) == ["cut", "flat", "short", "torn"]
    assert "they have 8 x 6 x 12 and 8 x 6 x 11 (X, Y, frames)" in problems["short"]
    assert "they have 8 x 6 and 8 x 6 (X, Y, frames)" in problems["flat"]
    assert f"{masks / 'cut.mha'} is cut off" in problems["cut"]
    assert f"{images / 'torn.mha'} cannot be read" in problems["torn"]


def test_hyphens_and_the_folder_itself_are_understood(acouslic: Path) -> None:
    root = root_of(acouslic)
    (root / "images/stacked_fetal_ultrasound").rename(root / "images/stacked-fetal-ultrasound")
    assert frames(read_acouslic(root)) == {BOTH: 6}


def test_ending_that_no_reader_knows_is_a_problem(acouslic: Path) -> None:
    image = root_of(acouslic) / "images/stacked_fetal_ultrasound" / f"{BOTH}.mha"
    image.rename(image.with_suffix(".MHA"))
    (problem,) = read_acouslic(acouslic).problems
    assert problem.name == BOTH
    assert f"{BOTH}.MHA must be renamed" in problem.reason


def test_wrong_downloads_of_acouslic_say_what_is_missing(acouslic: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stacked_fetal_ultrasound is missing: .*acouslic-ai-train-set\.zip"):
        read_acouslic(tmp_path / "nowhere")
    root = root_of(acouslic)
    table = root / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv"
    text = table.read_text()
    table.unlink()
    with pytest.raises(DataError, match=r"circumferences_per_sweep\.csv is missing"):
        read_acouslic(acouslic)
    table.write_text(text.replace("subject_id", "subject"))
    with pytest.raises(DataError, match="has no column subject_id"):
        read_acouslic(acouslic)
    for mask in (root / "masks/stacked_fetal_abdomen").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match=r"stacked_fetal_abdomen holds no \.mha"):
        read_acouslic(acouslic)
    (root / "masks/stacked_fetal_abdomen").rmdir()
    with pytest.raises(DataError, match="stacked_fetal_abdomen is missing"):
        read_acouslic(acouslic)


@pytest.mark.parametrize("read", [read_aimix, read_acouslic])
def test_options_explain_themselves(read: Callable[..., ScanResult]) -> None:
    hints = get_type_hints(read, include_extras=True)
    options = set(read.__kwdefaults__ or {})
    assert options
    assert all(hints[option].__metadata__[0] for option in options)
