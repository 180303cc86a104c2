"""How the voxels of one image lie on those of another, by their headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from nibabel.orientations import OrientationError, apply_orientation, inv_ornt_aff, io_orientation

EXACT = 0.01
"""Voxels; corners of two grids that are nearer to each other are the same but for rounding."""
ROUNDING = 0.5
"""Voxels; where corners are nearer than this, each voxel still lies on the one that it belongs to."""
SAME_AXES = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)


@dataclass(frozen=True)
class Placement:
    """Where the voxels of an image lie.

    Attributes:
        shape: voxels (X, Y, Z); Z is 1 in 2D.
        affine: (4, 4) from voxels to mm.
    """

    shape: tuple[int, ...]
    affine: np.ndarray


@dataclass(frozen=True)
class Alignment:
    """What brings an image onto the grid of another: voxels are flipped and their axes exchanged, never resampled.

    Attributes:
        orientation: nibabel's (3, 2): for each axis (X, Y, Z) the one it becomes, and 1, or -1 where it is flipped.
        distance: voxels between the corners of both grids after that, the largest; infinity where the shapes differ.
    """

    orientation: np.ndarray
    distance: float

    @property
    def is_reoriented(self) -> bool:
        """Whether axes are flipped or exchanged."""
        return not np.array_equal(self.orientation, SAME_AXES)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the headers say that the images lie apart, or at an angle."""
        return self.distance > ROUNDING

    @property
    def is_exact(self) -> bool:
        """Whether both grids are the same but for rounding."""
        return self.distance <= EXACT

    def apply(self, voxels: np.ndarray) -> np.ndarray:
        """``voxels`` (Z, Y, X) on the other grid."""
        return np.ascontiguousarray(apply_orientation(voxels.transpose(), self.orientation).transpose())


def align(image: Placement, reference: Placement) -> Alignment:
    """What brings ``image`` onto the grid of ``reference``.

    An affine matrix that cannot be inverted lies elsewhere than any other.
    """
    nowhere = Alignment(SAME_AXES, np.inf)
    if np.array_equal(image.affine, reference.affine):
        return Alignment(SAME_AXES, 0.0 if image.shape == reference.shape else np.inf)
    try:
        to_reference = np.linalg.solve(reference.affine, image.affine)
        orientation = io_orientation(to_reference)
    except (np.linalg.LinAlgError, OrientationError):
        return nowhere
    if not (np.isfinite(to_reference).all() and np.isfinite(orientation).all()):
        return nowhere
    orientation[np.equal(image.shape, 1), 1] = 1  # one slice is the same from both sides
    shape = np.empty(3, dtype=int)
    shape[orientation[:, 0].astype(int)] = image.shape
    if tuple(shape) != tuple(reference.shape):
        return Alignment(orientation, np.inf)
    reoriented = to_reference @ inv_ornt_aff(orientation, image.shape)
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))], dtype=float).T
    return Alignment(orientation, float(np.abs((reoriented @ corners - corners)[:3]).max()))


def placement_of(voxels: np.ndarray, properties: dict[str, Any]) -> Placement | None:
    """Placement of a file by the header fields that nnU-Net's reader goes by; None where its format has none.

    Args:
        voxels: (C, Z, Y, X).
        properties: returned with them.
    """
    shape = tuple(voxels.shape[:0:-1])
    if "sitk_stuff" in properties:
        found = properties["sitk_stuff"]
        return sitk_placement(shape, found["spacing"], found["origin"], found["direction"])
    if "nibabel_stuff" in properties:
        found = properties["nibabel_stuff"]
        return Placement(shape, np.asarray(found.get("reoriented_affine", found["original_affine"]), dtype=float))
    return None


def sitk_placement(
    size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]
) -> Placement:
    """Placement by SimpleITK's properties of a 2D or 3D image, all in the order X, Y, Z; directions row by row."""
    axes = len(spacing)
    affine = np.eye(4)
    affine[:axes, :axes] = np.reshape(direction, (axes, axes)) * np.asarray(spacing)
    affine[:axes, 3] = origin
    return Placement((*size, 1)[:3], affine)
