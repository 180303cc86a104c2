"""Tasks of the Medical Segmentation Decathlon, as they are unpacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.conversion.readers.msd import read_msd
from fednnunet.conversion.scan_result import ConversionIssue, SourceCase, SourceImage
from fednnunet.errors import DataError

VALUES = {1: "PZ", 2: "TZ"}


def write_image(path: Path, *shape: int) -> None:
    """Zeros of a shape (X, Y, Z) or (X, Y, Z, channel)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(shape[::-1], np.uint8), isVector=False), str(path))


def describe(folder: Path, cases: list[str], **changes: Any) -> None:
    """``dataset.json`` as that of Task05_Prostate."""
    description = {
        "name": "PROSTATE",
        "description": "Prostate transitional zone and peripheral zone segmentation",
        "reference": "Radboud University, Nijmegen Medical Centre",
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": len(cases),
        "numTest": 1,
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases],
        "test": ["./imagesTs/prostate_08.nii.gz"],
    } | changes
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "Task05_Prostate"
    cases = ["prostate_16", "prostate_04"]
    for case in cases:
        write_image(folder / "imagesTr" / f"{case}.nii.gz", 8, 8, 3, 2)
        write_image(folder / "labelsTr" / f"{case}.nii.gz", 8, 8, 3)
    write_image(folder / "imagesTs" / "prostate_08.nii.gz", 8, 8, 3, 2)
    for name in ("imagesTr/._prostate_16.nii.gz", "labelsTr/._prostate_16.nii.gz", "._dataset.json"):
        (folder / name).write_bytes(b"\0\5\26\7Mac OS X")
    describe(folder, cases)
    return folder


def test_channels_are_the_last_axis_and_all_cases_of_one_centre(task: Path) -> None:
    scan = read_msd(task)
    assert scan.cases == tuple(
        SourceCase(
            case,
            "PROSTATE",
            tuple(SourceImage(task / "imagesTr" / f"{case}.nii.gz", frame) for frame in (0, 1)),
            SourceImage(task / "labelsTr" / f"{case}.nii.gz"),
            VALUES,
            case,
        )
        for case in ("prostate_16", "prostate_04")
    )
    assert scan.channel_names == ("T2", "ADC")
    assert scan.labels == {"background": 0, "PZ": 1, "TZ": 2}
    assert scan.problems == ()
    assert scan.left_out == (
        ConversionIssue("prostate_08", "no annotation: a test image, whose label map is not published"),
    )


def test_one_channel_is_the_whole_image(task: Path) -> None:
    for case in ("prostate_04", "prostate_16"):
        write_image(task / "imagesTr" / f"{case}.nii.gz", 8, 8, 3)
    describe(task, ["prostate_04"], modality={"0": "MRI"}, test=[])
    scan = read_msd(task)
    assert [case.channels for case in scan.cases] == [(SourceImage(task / "imagesTr" / "prostate_04.nii.gz"),)]
    assert scan.channel_names == ("MRI",)
    assert scan.left_out == (ConversionIssue("imagesTr/prostate_16.nii.gz", "dataset.json does not list it"),)


def test_a_table_says_the_centres_and_patients(task: Path, tmp_path: Path) -> None:
    table = tmp_path / "centres.csv"
    table.write_text("Case;Centre;patient\nprostate_16;Nijmegen;p1\nprostate_04.nii.gz;Oslo;\n")
    cases = read_msd(task, centres=table).cases
    assert [(case.name, case.centre, case.patient) for case in cases] == [
        ("prostate_16", "Nijmegen", "p1"),
        ("prostate_04", "Oslo", "prostate_04"),
    ]


def test_missing_and_surplus_lines_in_the_table_of_centres_are_problems(task: Path, tmp_path: Path) -> None:
    table = tmp_path / "centres.csv"
    table.write_text("case,centre\nprostate_16,A\nprostate_16,B\nprostate_99,A\n")
    scan = read_msd(task, centres=table)
    assert scan.cases == ()
    assert scan.problems == (
        ConversionIssue("prostate_16", f"{table}, line 3: prostate_16 has two centres or patients"),
        ConversionIssue("prostate_04", f"is not in {table}"),
        ConversionIssue("prostate_99", f"is in {table}, and not in training in dataset.json", "A"),
    )
    table.write_text("case,centre\nprostate_16,\nprostate_04,A\n,B\n")
    assert read_msd(task, centres=table).problems == (
        ConversionIssue("prostate_16", f"{table}, line 2: case or centre is empty"),
        ConversionIssue("", f"{table}, line 4: case or centre is empty"),
    )


def test_files_that_are_missing_or_wrong_are_problems(task: Path) -> None:
    cases = ["prostate_04", "prostate_16", "broken", "flat", "three", "gone"]
    images = {case: task / "imagesTr" / f"{case}.nii.gz" for case in cases}
    for case in cases:
        write_image(task / "labelsTr" / f"{case}.nii.gz", 8, 8, 3)
    images["broken"].write_bytes(b"no image")
    write_image(images["flat"], 8, 8, 3)
    write_image(images["three"], 8, 8, 3, 3)
    (task / "labelsTr" / "prostate_16.nii.gz").unlink()
    describe(task, cases)
    scan = read_msd(task)
    assert [case.name for case in scan.cases] == ["prostate_04"]
    found = {issue.name: issue.reason for issue in scan.problems}
    assert list(found) == ["prostate_16", "broken", "flat", "three", "gone"]
    assert found["prostate_16"] == f"{task / 'labelsTr' / 'prostate_16.nii.gz'} is missing"
    assert found["broken"].startswith(f"{images['broken']} cannot be read: ")
    wanted = "modality in dataset.json names 2, so it must be X x Y x Z x 2"
    assert found["flat"] == f"{images['flat']} has 8 x 8 x 3 voxels; {wanted}"
    assert found["three"] == f"{images['three']} has 8 x 8 x 3 x 3 voxels; {wanted}"
    assert found["gone"] == f"{images['gone']} is missing"
    assert {issue.centre for issue in scan.problems} == {"PROSTATE"}


def test_a_folder_that_is_no_task_says_what_is_wanted(task: Path) -> None:
    with pytest.raises(DataError, match=r"has no dataset.json \(it holds Task05_Prostate: give one of them\)"):
        read_msd(task.parent)
    with pytest.raises(DataError, match=r"unpacked from http://medicaldecathlon.com: dataset.json, imagesTr, labelsTr"):
        read_msd(task / "imagesTr")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modality": ["T2", "ADC"]}, "must have the field modality"),
        ({"modality": {"0": "T2", "2": "ADC"}}, "modality must have the keys 0, 1"),
        ({"labels": {"0": "background"}}, "no label but background"),
        ({"labels": {"0": "background", "1": "PZ", "2": ["TZ"]}}, r"value 2 has no name"),
        ({"training": []}, "training is empty"),
        ({"training": ["./imagesTr/prostate_16.nii.gz"]}, "must list pairs of image and label"),
        (
            {"training": [{"image": "a/x.nii.gz", "label": "x.nii"}, {"image": "b/x.nii.gz", "label": "x.nii"}]},
            "x twice",
        ),
    ],
)
def test_an_unusable_description_error_names_the_field(task: Path, changes: dict[str, Any], says: str) -> None:
    describe(task, ["prostate_16"], **changes)
    with pytest.raises(DataError, match=says):
        read_msd(task)
