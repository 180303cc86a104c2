"""References to a dataset, its digest and its size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tifffile import imwrite

from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import raw_digest, stage_dataset
from fednnunet.errors import DataError
from tests.support.raw_datasets import change_description, rewrite


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


def test_links_are_staged_under_their_own_name(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset()
    for path in [*folder.glob("*/*.nii.gz")]:  # as caches and version control store files: the name is the link's
        path.rename(tmp_path / path.name.replace(".", "-"))
        path.symlink_to(tmp_path / path.name.replace(".", "-"))
    staged = stage_dataset(read_dataset(folder, "A"), tmp_path / "staged")
    check_images(read_dataset(staged, "A"), "A")


def test_staging_leaves_a_folder_with_images_alone(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(DataError, match="holds images"):
        stage_dataset(read_dataset(folder, "A"), folder.parent)
    assert (folder / "dataset.json").read_bytes() == before


def test_digest_follows_the_files(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    before = raw_digest(read_dataset(folder, "A"))
    assert raw_digest(read_dataset(folder, "A")) == before
    rewrite(folder / "labelsTr" / "case_002.nii.gz", lambda label: label * 0)
    assert raw_digest(read_dataset(folder, "A")) != before


def test_digest_follows_the_order_of_labels(make_dataset: Callable[..., Path]) -> None:
    """The outputs of a network trained on a cache are in that order."""
    folder = make_dataset()
    digests = []
    for labels in ({"background": 0, "x": 1, "y": 2}, {"background": 0, "y": 2, "x": 1}):
        change_description(folder, labels=labels)
        digests.append(raw_digest(read_dataset(folder, "A")))
    assert digests[0] != digests[1]


def test_digest_follows_the_spacing_beside_tif_volumes(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    for path in [*folder.glob("*/*.nii.gz")]:
        imwrite(path.with_name(path.name.replace(".nii.gz", ".tif")), sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
        path.unlink()
    change_description(folder, file_ending=".tif")
    digests = [raw_digest(read_dataset(folder, "A"))]
    for part in ("images", "labels"):
        (folder / f"{part}Tr" / "case_002.json").write_text('{"spacing": [3, 1, 1]}')
        digests.append(raw_digest(read_dataset(folder, "A")))
    assert len(set(digests)) == 3
