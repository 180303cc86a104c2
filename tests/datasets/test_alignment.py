"""Voxels are brought onto another grid by their headers, as nibabel and SimpleITK do it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from fednnunet.datasets.alignment import Placement, align, placement_of, sitk_placement
from tests.support.image_cases import voxels

AFFINE = from_matvec(euler2mat(0.2, 0.3, 0.1) @ np.diag([1.0, 1.5, 3.0]), [-40.0, 20.0, 7.0])


def oriented(axes: str) -> tuple[np.ndarray, Placement]:
    """The voxels (Z, Y, X) on another grid of the same world, made by nibabel."""
    image = nib.Nifti1Image(voxels().transpose(), AFFINE)
    start = nib.orientations.io_orientation(AFFINE)
    to = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axes))
    image = image.as_reoriented(to)
    return np.asarray(image.dataobj).transpose(), Placement(image.shape, image.affine)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPI", "PSR", "SAL"])
def test_flipped_and_exchanged_axes_are_brought_back(axes: str) -> None:
    array, placement = oriented(axes)
    alignment = align(placement, Placement(voxels().shape[::-1], AFFINE))
    assert alignment.is_exact
    assert alignment.is_reoriented == (axes != "RAS")
    assert (alignment.apply(array) == voxels()).all()


@pytest.mark.parametrize(
    ("shift", "exact", "elsewhere"), [(0.001, True, False), (0.3, False, False), (0.6, False, True)]
)
def test_the_largest_distance_of_corners_decides(shift: float, exact: bool, elsewhere: bool) -> None:
    array, placement = oriented("LPS")
    moved = placement.affine.copy()
    moved[:3, 3] += shift * placement.affine[:3, 1]
    alignment = align(Placement(placement.shape, moved), Placement(voxels().shape[::-1], AFFINE))
    assert alignment.distance == pytest.approx(shift, abs=1e-6)
    assert (alignment.is_exact, alignment.is_elsewhere) == (exact, elsewhere)
    assert (alignment.apply(array) == voxels()).all()


@pytest.mark.parametrize(
    "affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), from_matvec(euler2mat(0.7) @ AFFINE[:3, :3])]
)
def test_other_angles_and_matrices_that_say_nothing_lie_elsewhere(affine: np.ndarray) -> None:
    shape = voxels().shape[::-1]
    assert align(Placement(shape, affine), Placement(shape, AFFINE)).is_elsewhere
    assert align(Placement(shape, AFFINE), Placement(shape, affine)).is_elsewhere


def test_another_number_of_voxels_lies_elsewhere() -> None:
    assert align(Placement((10, 12, 7), AFFINE), Placement((10, 12, 6), AFFINE)).is_elsewhere


def test_simpleitk_agrees_on_where_voxels_lie() -> None:
    image = sitk.GetImageFromArray(voxels())
    image.SetSpacing((1.0, 1.5, 3.0))
    image.SetOrigin((5.0, -6.0, 7.0))
    image.SetDirection(euler2mat(0.2, 0.3, 0.1).flatten().tolist())
    placement = sitk_placement(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    index = (3, 4, 5)
    assert placement.affine @ (*index, 1) == pytest.approx((*image.TransformIndexToPhysicalPoint(index), 1))
    flipped = sitk.Flip(image, (True, False, True))
    back = align(
        sitk_placement(flipped.GetSize(), flipped.GetSpacing(), flipped.GetOrigin(), flipped.GetDirection()), placement
    )
    assert (back.apply(sitk.GetArrayFromImage(flipped)) == voxels()).all()


def test_placements_of_2d_images_have_one_slice() -> None:
    stuff = {"spacing": (1.0, 2.0), "origin": (3.0, 4.0), "direction": (1.0, 0.0, 0.0, -1.0)}
    placement = placement_of(np.zeros((1, 1, 12, 10)), {"sitk_stuff": stuff})
    assert placement is not None
    assert placement.shape == (10, 12, 1)
    assert (placement.affine @ (1, 1, 0, 1)).tolist() == [4.0, 2.0, 0.0, 1.0]
    assert placement_of(np.zeros((1, 1, 12, 10)), {"spacing": (999, 1, 1)}) is None


def test_one_slice_that_is_seen_from_the_other_side_is_the_same() -> None:
    flipped = AFFINE @ np.diag([1.0, 1.0, -1.0, 1.0])
    alignment = align(Placement((10, 12, 1), flipped), Placement((10, 12, 1), AFFINE))
    assert (alignment.is_reoriented, alignment.is_exact) == (False, True)
    assert align(Placement((10, 12, 2), flipped), Placement((10, 12, 2), AFFINE)).is_elsewhere
