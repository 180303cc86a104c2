"""The nnUNet_raw contract: what is found, and how a broken dataset is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from fednnunet.datasets.raw import find_dataset, read_dataset
from fednnunet.errors import DataError
from tests.support.raw_datasets import change_description


def test_dataset_is_found_by_id_name_and_path(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    for dataset in (101, "101", "Dataset101_Boxes", str(folder)):
        assert find_dataset(dataset, folder.parent, "A") == folder
    hyphened = make_dataset(name="Dataset102_MAMA-MIA")
    assert find_dataset(102, folder.parent, "A") == hyphened


def test_raw_folder_comes_from_nnunets_variable(
    make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset()
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    assert find_dataset(101, None, "A") == folder


def test_folder_of_another_name_is_refused(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(name="Boxes")
    with pytest.raises(DataError, match=r"centre A: .*Boxes must be named DatasetXXX_Name"):
        find_dataset(str(folder), None, "A")


def test_missing_dataset_error_lists_the_datasets_that_exist(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    with pytest.raises(DataError, match=r"centre Oslo: dataset 7 is not in .* Dataset101_Boxes"):
        find_dataset(7, folder.parent, "Oslo")


def test_ambiguous_id_is_refused(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    make_dataset(name="Dataset101_Other")
    with pytest.raises(DataError, match=r"ambiguous.*Dataset101_Boxes, Dataset101_Other"):
        find_dataset(101, folder.parent, "A")


def test_ids_need_a_raw_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(DataError, match=r"centre A: dataset 101 .* nnUNet_raw"):
        find_dataset(101, None, "A")


def test_listed_files_are_found_by_environment_variable_and_relative_path(
    make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset()
    cases = read_dataset(folder, "A").cases
    monkeypatch.setenv("SCANS", str(folder / "imagesTr"))
    listed = {
        case.name: {"images": [f"${{SCANS}}/{case.images[0].name}"], "label": f"labelsTr/{case.label.name}"}
        for case in cases
    }
    change_description(folder, dataset=listed)
    assert read_dataset(folder, "A").cases == cases
    theirs = get_filenames_of_train_images_and_targets(str(folder))
    assert [[str(path) for path in case.images] for case in cases] == [theirs[case.name]["images"] for case in cases]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ([], "case_000 must have images"),
        ({"images": "a_0000.nii.gz", "label": "a.nii.gz"}, "case_000 must have images"),
        ({"images": ["a_0000.nii.gz"]}, "case_000 must have images"),
        ({"images": ["a_0000.mha"], "label": "a.nii.gz"}, "a_0000.mha has another file ending than .nii.gz"),
        ({"images": ["a_0000.nii.gz", "a_0001.nii.gz"], "label": "a.nii.gz"}, "case_000 has 2 images"),
        ({"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}, "a_0000.nii.gz is missing"),
    ],
)
def test_broken_entry_of_listed_files_is_named(make_dataset: Callable[..., Path], entry: Any, problem: str) -> None:
    folder = make_dataset()
    change_description(folder, dataset={"case_000": entry})
    with pytest.raises(DataError, match=f"centre Oslo: .*{problem}"):
        read_dataset(folder, "Oslo")


def test_files_with_another_ending_are_allowed_beside_the_same_cases(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    (folder / "imagesTr" / "case_003_0000.nrrd").touch()
    (folder / "imagesTr" / "case_003_0000.json").touch()
    assert len(read_dataset(folder, "A").cases) == 6
    (folder / "imagesTr" / "case_006_0000.nrrd").touch()
    with pytest.raises(DataError, match=r"centre A: .*case_006_0000.nrrd has another file ending"):
        read_dataset(folder, "A")


def break_nothing_left(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.unlink()
    for path in (folder / "labelsTr").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda f: (f / "dataset.json").unlink(), "dataset.json is missing"),
        (break_nothing_left, "holds no case"),
        (lambda f: change_description(f, file_ending=".mha"), "_0000.nii.gz has another file ending than .mha"),
        (
            lambda f: (f / "imagesTr" / "case_003_0000.nii.gz").rename(f / "imagesTr" / "case_003.nii.gz"),
            "case_003.nii.gz has no channel number",
        ),
        (
            lambda f: (f / "imagesTr" / "case_003_0001.nii.gz").touch(),
            "case_003_0001.nii.gz is a channel that channel_names in dataset.json lacks",
        ),
        (lambda f: (f / "labelsTr" / "case_003.nii.gz").unlink(), "case_003.nii.gz is missing"),
        (lambda f: (f / "imagesTr" / "case_003_0000.nii.gz").unlink(), "case_003.nii.gz has no image"),
        (lambda f: change_description(f, channel_names={"0": "T1", "1": "T2"}), "_0001.nii.gz is missing"),
    ],
)
def test_broken_folders_are_named_by_centre_and_file(
    make_dataset: Callable[..., Path], break_it: Callable[[Path], object], problem: str
) -> None:
    folder = make_dataset()
    break_it(folder)
    with pytest.raises(DataError, match=f"centre Oslo: .*{problem}"):
        read_dataset(folder, "Oslo")
