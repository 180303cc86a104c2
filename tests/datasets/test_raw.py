"""The nnUNet_raw contract: what is found, and how a broken dataset is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from fednnunet.datasets.raw import check_images, find_dataset, raw_digest, read_dataset, stage_dataset
from fednnunet.errors import DataError


def change_description(folder: Path, **fields: Any) -> None:
    path = folder / "dataset.json"
    description = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], spacing: tuple[float, ...] | None = None) -> None:
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(spacing or image.GetSpacing())
    sitk.WriteImage(changed, str(path))


def test_dataset_is_found_by_id_name_and_path(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    for dataset in (101, "101", "Dataset101_Boxes", str(folder)):
        assert find_dataset(dataset, folder.parent, "A") == folder


def test_missing_dataset_is_told_with_what_is_there(make_dataset: Callable[..., Path]) -> None:
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


def test_cases_are_those_that_nnunet_reads(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = read_dataset(make_dataset(), "A")
    check_images(dataset, "A")
    staged = stage_dataset(dataset, tmp_path / "staged")
    theirs = get_filenames_of_train_images_and_targets(str(staged))
    assert theirs == {
        case.name: {"images": [str(path) for path in case.images], "label": str(case.label)} for case in dataset.cases
    }
    assert json.loads((staged / "dataset.json").read_text())["numTraining"] == 6
    assert read_dataset(staged, "A").cases == dataset.cases


def test_digest_follows_the_files(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    before = raw_digest(read_dataset(folder, "A"))
    assert raw_digest(read_dataset(folder, "A")) == before
    rewrite(folder / "labelsTr" / "case_002.nii.gz", lambda label: label * 0)
    assert raw_digest(read_dataset(folder, "A")) != before


def break_nothing_left(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.unlink()
    for path in (folder / "labelsTr").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda f: (f / "dataset.json").unlink(), "dataset.json is missing"),
        (lambda f: (f / "dataset.json").write_text("{"), "dataset.json is not JSON"),
        (lambda f: change_description(f, file_ending=None), "no field file_ending"),
        (lambda f: change_description(f, labels={"tumour": 1}), "background to 0"),
        (break_nothing_left, "holds no case"),
        (lambda f: change_description(f, file_ending=".mha"), "holds no case with file ending .mha"),
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


def test_too_few_cases_for_five_folds_are_refused_unless_external(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(cases=4)
    with pytest.raises(DataError, match=r"4 training cases; .* needs 5"):
        read_dataset(folder, "A")
    assert len(read_dataset(folder, "A", external=True).cases) == 4


@pytest.mark.parametrize(
    ("file", "change", "spacing", "problem"),
    [
        (
            "imagesTr/case_001_0000.nii.gz",
            lambda a: a[:-1],
            None,
            "shape 5 x 40 x 40, its label .* 6 x 40 x 40",
        ),
        ("imagesTr/case_001_0000.nii.gz", lambda a: a, (1.0, 1.0, 2.0), "spacing 2 x 1 x 1 mm"),
        ("labelsTr/case_001.nii.gz", lambda a: a * 3, None, "value 3, which labels .* does not name"),
    ],
)
def test_images_that_do_not_fit_are_named(
    make_dataset: Callable[..., Path],
    file: str,
    change: Callable[[np.ndarray], np.ndarray],
    spacing: tuple[float, ...] | None,
    problem: str,
) -> None:
    folder = make_dataset()
    rewrite(folder / file, change, spacing)
    with pytest.raises(DataError, match=f"centre Oslo: .*case_001.*{problem}"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_nan_in_an_image_is_named(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()  # ITK reads NaN in NIfTI as 0; MetaImage keeps it
    for path in [*folder.glob("*/*.nii.gz")]:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        if path.name == "case_001_0000.nii.gz":
            values[0, 0, 0] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path).replace(".nii.gz", ".mha"))
    change_description(folder, file_ending=".mha")
    with pytest.raises(DataError, match=r"centre Oslo: .*case_001_0000.mha holds NaN"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_unreadable_image_is_named(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    (folder / "imagesTr" / "case_004_0000.nii.gz").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"centre Oslo: .*case_004_0000.nii.gz can not be read"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_region_and_ignore_labels_are_allowed(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    change_description(folder, labels={"background": 0, "whole": [1, 2], "core": [2], "ignore": 3})
    rewrite(folder / "labelsTr" / "case_001.nii.gz", lambda label: label * 3)
    check_images(read_dataset(folder, "A"), "A")
