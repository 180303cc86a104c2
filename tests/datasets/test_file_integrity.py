"""Files that were cut off are found by reading them to their end."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from fednnunet.datasets.file_integrity import check_written, inspect_file
from fednnunet.errors import DataError
from fednnunet.files import DISK_FULL
from tests.support.image_cases import SHAPE, cut, voxels, write

FORMATS = [(".nii.gz", True), (".nii", False), (".nrrd", True), (".nrrd", False), (".mha", True), (".mha", False)]


@pytest.mark.parametrize(("ending", "compressed"), [*FORMATS, (".gipl", False)])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, ending: str, compressed: bool) -> None:
    path = tmp_path / f"scan{ending}"
    write(voxels(np.int16), path, compressed)
    inspect_file(path)
    cut(path, path.stat().st_size // 3)
    with pytest.raises(DataError, match=rf"scan{ending} is cut off"):
        inspect_file(path)


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nrrd"])
def test_endings_in_upper_case_are_known(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    write(voxels(np.int16), tmp_path / f"scan{ending.lower()}")
    cut(tmp_path / f"scan{ending.lower()}", 200)
    (tmp_path / f"scan{ending.lower()}").rename(path)
    with pytest.raises(DataError, match="is cut off"):
        inspect_file(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_missing_checksum_is_found(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    write(voxels(np.int16), path)
    cut(path, 2)  # all voxels are there
    with pytest.raises(DataError, match=r"is cut off"):
        inspect_file(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_wrong_checksum_is_found(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    write(voxels(np.int16), path)
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged \(CRC"):
        inspect_file(path)


def test_a_file_that_was_cut_off_before_it_was_compressed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write(voxels(np.int16), path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))
    with pytest.raises(DataError, match=r"is cut off"):
        inspect_file(path)


def test_several_gzip_members_and_what_was_appended_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write(voxels(np.int16), path)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]) + b"appended")
    inspect_file(path)
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == voxels(np.int16)).all()


def test_an_uncompressed_file_named_gz_is_no_fault(tmp_path: Path) -> None:
    write(voxels(np.int16), tmp_path / "scan.nii", compressed=False)
    (tmp_path / "scan.nii").rename(tmp_path / "scan.nii.gz")
    inspect_file(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_counted(tmp_path: Path, dtype: type) -> None:
    array = voxels(dtype)
    array[:, 0, 0], array[0, -1, -1] = np.nan, np.inf
    write(array, tmp_path / "scan.nii.gz")
    assert inspect_file(tmp_path / "scan.nii.gz").not_finite == SHAPE[0] + 1


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_unit_shape_and_both_affines_are_read(tmp_path: Path, kind: type) -> None:
    path, affine = tmp_path / "scan.nii.gz", np.diag([500.0, 500.0, 3000.0, 1.0])
    image = kind(np.zeros((4, 5, 6, 2, 1), np.int16), affine)
    image.header.set_xyzt_units("micron", "sec")
    image.set_qform(np.diag([-500.0, 500.0, 3000.0, 1.0]), "scanner")
    nib.save(image, path)
    header = inspect_file(path).nifti
    assert header is not None
    assert (header.shape, header.unit, header.millimetres) == ((4, 5, 6, 2), "micron", 0.001)
    assert header.sform is not None
    assert header.qform is not None
    assert header.sform[0, 0] == 500
    assert header.qform[0, 0] == pytest.approx(-500)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_file_that_lost_its_last_pages_is_named(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "scan.tiff"
    pages = [Image.fromarray(page) for page in voxels(np.uint8)]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=compression)
    inspect_file(path)
    with tifffile.TiffFile(path) as file:
        start = file.pages[4].offset  # libtiff writes a page's description behind its voxels
    path.write_bytes(path.read_bytes()[:start])
    assert len(tifffile.imread(path)) == 4
    with pytest.raises(DataError, match=r"scan.tiff is cut off"):
        inspect_file(path)


def test_what_is_no_image_is_left_to_the_reader(tmp_path: Path) -> None:
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".tif"):
        path = tmp_path / f"scan{ending}"
        path.write_bytes(b"not an image")
        assert inspect_file(path).nifti is None


@pytest.mark.parametrize("qfac", [0, 1, 7])
def test_the_first_of_pixdim_is_1_where_it_says_nothing(tmp_path: Path, qfac: int) -> None:
    image = nib.Nifti1Image(voxels().transpose(), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.set_qform(image.affine, "scanner")
    nib.save(image, tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[76:80] = np.float32(qfac).tobytes()  # pixdim[0]
    (tmp_path / "scan.nii").write_bytes(content)
    header = inspect_file(tmp_path / "scan.nii").nifti
    assert header is not None
    assert header.qform is not None
    assert np.allclose(header.qform, image.affine)


@pytest.mark.parametrize(("field", "value"), [("datatype", 4096), ("vox_offset", np.nan), ("vox_offset", np.inf)])
def test_a_header_that_makes_no_sense_is_named(tmp_path: Path, field: str, value: float) -> None:
    write(voxels(np.int16), tmp_path / "scan.nii", compressed=False)
    content = (tmp_path / "scan.nii").read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    header[field] = value
    (tmp_path / "scan.nii").write_bytes(header.binaryblock + content[348:])
    with pytest.raises(DataError, match=r"scan.nii is damaged: its header makes no sense"):
        inspect_file(tmp_path / "scan.nii")


def test_a_file_that_was_not_written_to_its_end_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "label.nii.gz"
    write(voxels(), path)
    check_written(path)
    cut(path, 100)
    with pytest.raises(OSError, match="the disk is full") as raised:
        check_written(path)
    assert raised.value.errno in DISK_FULL
    assert not path.exists()
