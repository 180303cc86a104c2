"""DSC, HD95, surface DSC and volume error of two masks, as pure functions of NumPy arrays.

Empty masks are handled here alone. Where prediction and reference are both empty there was nothing to find and nothing
was found: DSC and surface DSC are 1, HD95 and volume error 0. (nnU-Net's ``compute_metrics`` and MONAI say NaN for DSC
and leave the case out.) Where just one is empty, DSC and surface DSC are 0, the volume error has no value without a
reference, and HD95 has none by the metric's definition (MONAI: NaN or infinity). Leaving such cases out would reward a
model for finding nothing, so HD95 is then the length of the image's diagonal, the largest distance two of its points
can have. The BraTS challenges do the same with a constant, the diagonal of their images; here images differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, generate_binary_structure
from scipy.spatial import KDTree

PERCENTILE = 95.0

SurfaceDistances = tuple[np.ndarray, np.ndarray]
"""Distances from the surface of the prediction to that of the reference, and back; see :func:`surface_distances`."""


def dice_score(prediction: np.ndarray, reference: np.ndarray) -> float:
    r"""Dice similarity coefficient of two masks of one shape, in [0, 1].

    .. math:: \mathrm{DSC} = 2 |P \cap R| / (|P| + |R|)

    >>> dice_score(np.array([1, 1, 1, 0]), np.array([0, 1, 1, 1]))
    0.6666666666666666
    """
    prediction, reference = _masks(prediction, reference)
    size = int(prediction.sum()) + int(reference.sum())
    return 1.0 if size == 0 else 2.0 * int((prediction & reference).sum()) / size


def hausdorff_distance_95(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    distances: SurfaceDistances | None = None,
) -> float:
    """95th percentile of the symmetric Hausdorff distance between the surfaces of two masks.

    The larger of the two directed 95th percentiles, as in ``monai.metrics.compute_hausdorff_distance``.

    Args:
        prediction: mask (Z, Y, X) or (Y, X).
        reference: mask of the same shape.
        spacing: size of a voxel along each axis: mm, or ones for pixels. The result has its unit.
        distances: :func:`surface_distances` of the masks, where they are known.

    >>> hausdorff_distance_95(np.array([[1, 0, 0]]), np.array([[0, 0, 1]]), spacing=(1.0, 0.5))
    1.0
    """
    prediction, reference = _masks(prediction, reference)
    if distances is None:
        distances = surface_distances(prediction, reference, spacing)
    if not prediction.any() and not reference.any():
        return 0.0
    if not prediction.any() or not reference.any():
        return float(np.linalg.norm((np.array(prediction.shape) - 1) * np.asarray(spacing)))
    return max(float(np.percentile(directed, PERCENTILE)) for directed in distances)


def surface_dice(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    tolerance: float,
    distances: SurfaceDistances | None = None,
) -> float:
    """Share of both surfaces that lies within ``tolerance`` of the other one, in [0, 1].

    Nikolov et al. 2021 (normalised surface Dice), on voxels of the surface as in
    ``monai.metrics.compute_surface_dice``.

    Args:
        prediction: mask (Z, Y, X) or (Y, X).
        reference: mask of the same shape.
        spacing: size of a voxel along each axis.
        tolerance: in the unit of the spacing.
        distances: :func:`surface_distances` of the masks, where they are known.

    >>> surface_dice(np.array([[1, 0, 0]]), np.array([[0, 1, 0]]), spacing=(1.0, 2.0), tolerance=1.0)
    0.0
    """
    prediction, reference = _masks(prediction, reference)
    if distances is None:
        distances = surface_distances(prediction, reference, spacing)
    if not prediction.any() or not reference.any():
        return float(prediction.any() == reference.any())
    near = sum(int((directed <= tolerance).sum()) for directed in distances)
    return near / sum(len(directed) for directed in distances)


def volume_error(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Volume segmented too much (negative: too little), as a fraction of the reference's; NaN without a reference.

    >>> volume_error(np.array([1, 0, 0, 0]), np.array([0, 1, 1, 0]))
    -0.5
    """
    prediction, reference = _masks(prediction, reference)
    ours, theirs = int(prediction.sum()), int(reference.sum())
    if theirs == 0:
        return 0.0 if ours == 0 else np.nan
    return (ours - theirs) / theirs


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Distance of each surface voxel of one mask to the surface of the other, both ways; none where a mask is empty.

    Args:
        prediction: mask (Z, Y, X) or (Y, X).
        reference: mask of the same shape.
        spacing: size of a voxel along each axis.

    Raises:
        ValueError: masks of two shapes, or a spacing for another number of axes.

    >>> surface_distances(np.array([[1, 1, 0, 0]]), np.array([[0, 0, 0, 1]]), spacing=(1.0, 1.0))
    (array([3., 2.]), array([2.]))
    """
    prediction, reference = _masks(prediction, reference)
    if len(spacing) != prediction.ndim:
        raise ValueError(f"spacing has {len(spacing)} values, the masks {prediction.ndim} axes")
    if not prediction.any() or not reference.any():
        return np.empty(0), np.empty(0)
    box = _bounding_box(prediction | reference)
    ours, theirs = _surface(prediction[box]) * np.asarray(spacing), _surface(reference[box]) * np.asarray(spacing)
    # A distance map of the whole box takes gigabytes where one stray voxel makes the box as large as the image.
    return KDTree(theirs).query(ours)[0], KDTree(ours).query(theirs)[0]


def _masks(prediction: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    prediction, reference = np.asarray(prediction).astype(bool), np.asarray(reference).astype(bool)
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}")
    return prediction, reference


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box around ``mask``; distances between points inside it do not change by cutting it out."""
    box = []
    for axis in range(mask.ndim):
        other = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(axis=other))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices (points, axes) of voxels of ``mask`` with a face neighbour outside of it."""
    return np.argwhere(mask & ~binary_erosion(mask, generate_binary_structure(mask.ndim, 1), border_value=0))
