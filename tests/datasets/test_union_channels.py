"""Channels of centres that have acquired different ones: one order, zeros in the case's own grid, files that stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from PIL import Image

from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.staging import raw_digest
from fednnunet.datasets.union_channels import (
    fingerprint_of_union,
    missing_channels,
    with_union_channels,
    without_acquired,
)
from fednnunet.errors import DataError, ProtocolError
from tests.conftest import MakeDataset
from tests.datasets.test_union_labels import digests
from tests.support.raw_datasets import change_description, rewrite

UNION = ["ADC", "T1", "T2"]


def centre(folder: Path, *channels: str) -> RawDataset:
    """Boxes with these channels; the voxels of the first are those of all others."""
    for path in sorted((folder / "imagesTr").iterdir()):
        for channel in range(1, len(channels)):
            shutil.copy2(path, path.with_name(path.name.replace("_0000", f"_{channel:04d}")))
    change_description(folder, channel_names={str(number): name for number, name in enumerate(channels)})
    return read_dataset(folder, "Oslo")


def united(dataset: RawDataset, cache: Path) -> RawDataset:
    return with_union_channels(dataset, UNION, "Oslo", cache)


def test_own_files_stay_and_a_missing_channel_is_zeros(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset()
    dataset = centre(folder, "T2", "ADC")
    before = digests(folder)
    common = united(dataset, tmp_path / "cache")
    assert digests(folder) == before
    assert common.channel_names == {"0": "ADC", "1": "T1", "2": "T2"}
    assert common.dataset_json["acquired"] == ["ADC", "T2"]
    assert missing_channels(common.dataset_json) == {1: "T1"}
    reader = determine_reader_writer_from_dataset_json(
        common.dataset_json, str(common.cases[0].images[0]), verbose=False
    )()
    for own, ours in zip(dataset.cases, common.cases, strict=True):
        assert (ours.images[0], ours.images[2], ours.label) == (own.images[1], own.images[0], own.label)
        image, zeros = (sitk.ReadImage(str(path)) for path in ours.images[:2])
        assert not sitk.GetArrayFromImage(zeros).any()
        assert zeros.GetSize() == image.GetSize()
        assert zeros.GetSpacing() == image.GetSpacing()
        assert zeros.GetOrigin() == image.GetOrigin()
        assert zeros.GetDirection() == image.GetDirection()
        assert reader.read_images([str(path) for path in ours.images])[0].shape[0] == 3
    assert raw_digest(common) != raw_digest(dataset)


def test_channels_that_change_places_are_another_dataset(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Files of one size and time, as uncompressed ones of an archive are: only dataset.json tells which is which."""
    dataset = centre(make_dataset(), "T2", "ADC")
    description = dict(dataset.dataset_json, channel_names={"0": "ADC", "1": "T2"})
    found = [united(one, tmp_path / "cache") for one in (dataset, replace(dataset, dataset_json=description))]
    assert found[0].dataset_json == found[1].dataset_json
    assert found[0].cases[0].images[0] != found[1].cases[0].images[0]
    assert raw_digest(found[0]) != raw_digest(found[1])


def test_zeros_are_written_once_for_each_grid(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset(cases=3)
    for part in ("imagesTr/case_002_0000", "labelsTr/case_002"):
        rewrite(folder / f"{part}.nii.gz", lambda voxels: voxels, (1.0, 1.0, 2.5))
    dataset = centre(folder, "T1")
    common = united(dataset, tmp_path / "cache")
    written = [{path for path in case.images if path.name.startswith("zeros")} for case in common.cases]
    assert written[0] == written[1] != written[2]
    assert [len(paths) for paths in written] == [1, 1, 1]
    zeros = common.cases[0].images[0]
    assert zeros.stat().st_size < 1000
    inode, digest = zeros.stat().st_ino, raw_digest(common)
    assert united(dataset, tmp_path / "cache") == common
    assert zeros.stat().st_ino == inode
    shutil.rmtree(zeros.parent)
    assert raw_digest(united(dataset, tmp_path / "cache")) == digest
    assert zeros.is_file()


def test_channels_in_another_order_are_put_in_order(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = centre(make_dataset(), "T2", "T1", "ADC")
    common = united(dataset, tmp_path / "cache")
    assert [case.images for case in common.cases] == [case.images[::-1] for case in dataset.cases]
    assert "acquired" not in common.dataset_json
    assert missing_channels(common.dataset_json) == {}
    assert not (tmp_path / "cache").exists()
    assert united(common, tmp_path / "cache") is common


def _as_nifti(path: Path) -> None:
    """Directions that are not at right angles, which SimpleITK does not read."""
    image = nib.load(path)
    sheared = image.affine + np.array([[0, 0.3, 0, 5], [0, 0, 0, -7], [0, 0, 0, 3], [0, 0, 0, 0]])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), sheared), path)


def _as(ending: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        target = path.with_name(path.name.replace(".nii.gz", ending))
        image = sitk.ReadImage(str(path))
        voxels = sitk.GetArrayFromImage(image)
        if ending == ".png":
            Image.fromarray(voxels[1].clip(0, 255).astype(np.uint8)).save(target)
        elif ending == ".tiff":
            tifffile.imwrite(target, voxels)
            case = target.name.removesuffix(ending).removesuffix("_0000")
            (target.parent / f"{case}.json").write_text('{"spacing": [3.0, 1.5, 1.25]}')
        else:
            image.SetOrigin((0.1, -20.3, 1 / 3))
            sitk.WriteImage(image, str(target))
        path.unlink()

    return write


@pytest.mark.parametrize(
    ("ending", "convert"),
    [(".nii.gz", _as_nifti), *((ending, _as(ending)) for ending in (".nii", ".nrrd", ".mha", ".tiff", ".png"))],
)
def test_every_format_is_written(
    make_dataset: MakeDataset, tmp_path: Path, ending: str, convert: Callable[[Path], None]
) -> None:
    folder = make_dataset(cases=2, spacing=(2.7, 0.7, 1 / 3))
    for path in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        convert(path)
    change_description(folder, file_ending=ending)
    dataset = centre(folder, "T1")
    common = united(dataset, tmp_path / "cache")
    reader = determine_reader_writer_from_dataset_json(
        common.dataset_json, str(dataset.cases[0].images[0]), verbose=False
    )
    for own, ours in zip(dataset.cases, common.cases, strict=True):
        voxels, properties = reader().read_images([str(path) for path in ours.images])
        alone, expected = reader().read_images([str(path) for path in own.images])
        assert np.array_equal(voxels[1:2], alone)
        assert not voxels[[0, 2]].any()
        assert properties["spacing"] == expected["spacing"], "zeros are the first file, from which nnU-Net may take it"


def test_an_image_of_all_channels_in_one_file_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = centre(make_dataset(), "T1", "T2")
    cases = tuple(replace(case, images=case.images[:1]) for case in dataset.cases)
    with pytest.raises(
        DataError, match=r"^centre Oslo: task\.channels=union .*case_000_0000.nii.gz holds all of a case"
    ):
        united(replace(dataset, cases=cases), tmp_path)


def test_channels_that_cannot_be_told_apart_or_placed_are_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = centre(make_dataset(), "T1", "T1")
    with pytest.raises(DataError, match=r"^centre Oslo: task\.channels=union, but channel_names in .* has T1 twice; "):
        united(dataset, tmp_path)
    other = centre(make_dataset(name="Dataset102_Other"), "CT")
    with pytest.raises(ProtocolError, match="the server's channels lack CT, which centre Oslo has"):
        united(other, tmp_path)


def test_a_dataset_cannot_say_itself_what_it_has_acquired(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    change_description(folder, acquired=["T1"])
    dataset = without_acquired(read_dataset(folder, "Oslo"))
    assert "acquired" not in dataset.dataset_json
    assert without_acquired(dataset) is dataset


def test_a_fingerprint_is_of_the_nodes_own_channels_in_their_places() -> None:
    own = {
        "spacings": [[1, 1, 1]],
        "foreground_intensity_properties_per_channel": {"0": {"mean": 2.0}, "1": {"mean": 0.5}},
    }
    assert fingerprint_of_union(own, ["T2", "ADC"], UNION) == {
        "spacings": [[1, 1, 1]],
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.5}, "1": {}, "2": {"mean": 2.0}},
    }
