"""Small images and label maps as hospitals have them, of the kinds that readers get wrong.

Functions that take a folder change cases of a raw dataset of NIfTI files (``tests.conftest.write_boxes``).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from tests.support.raw_datasets import change_description

SHAPE = (6, 12, 10)
"""Z, Y, X of :func:`voxels`."""


def voxels(dtype: type = np.float32) -> np.ndarray:
    """Noise of values from 1 to 250 (Z, Y, X), the same in each call."""
    return np.random.default_rng(7).integers(1, 250, SHAPE).astype(dtype)


def write(array: np.ndarray, path: Path, compressed: bool = True) -> None:
    """Write (Z, Y, X) with spacing 1 x 1 x 3 mm, in the format of the ending."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 3.0)[: array.ndim])
    sitk.WriteImage(image, str(path), compressed)


def cut(path: Path, missing: int) -> None:
    """Take the last ``missing`` bytes off a file, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[:-missing])


def image_of(folder: Path, case: int = 2) -> Path:
    """Image of a case, whatever its ending."""
    (path,) = folder.glob(f"imagesTr/case_{case:03d}_0000.*")
    return path


def label_of(folder: Path, case: int = 2) -> Path:
    """Label map of a case."""
    (path,) = (path for path in folder.glob(f"labelsTr/case_{case:03d}.*") if path.suffix != ".json")
    return path


def read(path: Path) -> np.ndarray:
    """Voxels (X, Y, Z) as nibabel reads them."""
    return np.array(nib.load(path).dataobj)  # a copy: a view of an uncompressed file changes with it


def change_voxels(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write a NIfTI file anew with changed voxels (X, Y, Z)."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj).copy()), image.affine), path)


def rename(folder: Path, ending: str) -> None:
    """Store all files of a dataset with another ending of NIfTI."""
    for path in [*folder.glob("*/*.nii.gz")] if ending == ".nii" else []:
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    change_description(folder, file_ending=ending)


# kinds -------------------------------------------------------------------------------------------------


def cut_image(folder: Path) -> None:
    cut(image_of(folder), 100)


def cut_label(folder: Path) -> None:
    cut(label_of(folder), 10)


def image_of_four_dimensions(folder: Path) -> None:
    change_voxels(image_of(folder), lambda array: np.stack([array] * 2, axis=-1))


def label_of_four_dimensions(folder: Path) -> None:
    change_voxels(label_of(folder), lambda array: np.stack([array] * 2, axis=-1))


def label_a_hair_below_one(folder: Path) -> None:
    change_voxels(label_of(folder), lambda array: array * np.float32(0.9999999))


def label_of_fractions(folder: Path) -> None:
    change_voxels(label_of(folder), lambda array: array * np.float32(0.9523))


def not_finite(folder: Path) -> None:
    """80 voxels."""

    def spoil(array: np.ndarray) -> np.ndarray:
        array[:40, 0, 0], array[:40, -1, -1] = np.nan, np.inf
        return array

    change_voxels(image_of(folder), spoil)


def not_finite_label(folder: Path) -> None:
    change_voxels(label_of(folder), lambda array: np.where(array > 0, np.nan, np.float32(0)))


def constant_image(folder: Path) -> None:
    change_voxels(image_of(folder), lambda array: array * 0 + 7)


def ignored_everywhere(folder: Path) -> None:
    change_description(folder, labels={"background": 0, "tumour": 1, "ignore": 2})
    change_voxels(label_of(folder), lambda array: array * 0 + 2)


def mirrored_label(folder: Path) -> None:
    """Voxels and header; in the world, nothing has moved."""
    reorient(label_of(folder), [[0, -1], [1, 1], [2, 1]])


def turned_label(folder: Path) -> None:
    """As :func:`mirrored_label`, axes exchanged."""
    reorient(label_of(folder), [[2, 1], [0, -1], [1, 1]])


def reorient(path: Path, orientation: list[list[int]]) -> None:
    """Exchange and flip voxel axes as nibabel's ``orientation`` says, in voxels and header."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.array(image.dataobj), image.affine).as_reoriented(orientation), path)


def label_whose_forms_disagree(folder: Path) -> None:
    """By its qform it lies on its image, by its sform mirrored."""
    image, path = nib.load(image_of(folder)), label_of(folder)
    mirrored = image.affine @ nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], image.shape)
    label = nib.Nifti1Image(read(path), mirrored)
    label.set_qform(image.affine, "scanner")
    label.set_sform(mirrored, "scanner")
    nib.save(label, path)


def shifted_label(folder: Path) -> None:
    """By 0.3 voxels."""
    path = label_of(folder)
    array, affine = read(path), nib.load(path).affine.copy()
    affine[0, 3] += 0.3
    nib.save(nib.Nifti1Image(array, affine), path)


def label_without_position(folder: Path) -> None:
    """Neither qform nor sform; by nibabel it then lies mirrored, around the origin."""
    path = label_of(folder)
    label = nib.Nifti1Image(read(path), None)
    label.header.set_zooms((1, 1, 3))
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), None, label.header), path)


def in_unit(folder: Path, unit: str, per_millimetre: float) -> None:
    """Say the lengths in the header of every file in another unit."""
    for path in folder.glob("*/*.nii*"):
        array, affine = read(path), nib.load(path).affine.copy()
        affine[:3] *= per_millimetre
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, path)


def micrometres(folder: Path) -> None:
    in_unit(folder, "micron", 1000)


def metres(folder: Path) -> None:
    in_unit(folder, "meter", 0.001)


def two_spacings(folder: Path) -> None:
    """``pixdim`` says 1 x 1 x 3 mm, sform 2 x 2 x 6 mm."""
    for path in (image_of(folder), label_of(folder)):
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        written = nib.Nifti1Image(array, image.affine)
        written.header.set_sform(image.affine @ np.diag([2, 2, 2, 1]), "scanner")
        written.header.set_qform(None, "unknown")
        content = written.header.copy()
        nib.save(nib.Nifti1Image(array, None, content), path)
