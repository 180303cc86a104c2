"""Small images and label maps as hospitals have them, of the kinds that readers get wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

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


def change_nifti(path: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    """Write a NIfTI file anew with changed voxels (X, Y, Z) and affine (4, 4)."""
    image = nib.load(path)
    array, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(array, affine), path)
