"""DSC, HD95, surface DSC and volume error: functions of two masks, and torchmetrics metrics over cases.

Empty masks, in one place. Where prediction and reference are both empty there was nothing to find and nothing was
found: DSC and surface DSC are 1, HD95 and volume error 0. (nnU-Net's ``compute_metrics`` and MONAI say NaN for DSC and
leave the case out.) Where just one is empty, both DSC are 0, the volume error has no value without a reference, and
HD95 has none in the metric's definition (MONAI: NaN or infinity). Leaving such cases out would reward a model for
finding nothing, so HD95 is then the length of the image's diagonal, the largest distance two of its points can have.
The BraTS challenges do the same with a constant, the diagonal of their images; here images differ in size. Reports
count and list such cases (:attr:`LabelScore.empty`); :class:`HausdorffDistance95` counts them in ``num_undefined``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_erosion, generate_binary_structure
from scipy.spatial import KDTree
from torchmetrics import Metric

PERCENTILE = 95.0


class LabelScore(NamedTuple):
    """Scores of one label or region in one case.

    Attributes:
        label: its name.
        dsc: :func:`dice_score`.
        hd95: :func:`hausdorff_distance_95`.
        surface_dsc: :func:`surface_dice`.
        volume_error: :func:`volume_error`.
        empty: which of the two masks is.
    """

    label: str
    dsc: float
    hd95: float
    surface_dsc: float
    volume_error: float
    empty: Literal["prediction", "reference", "both"] | None


def dice_score(prediction: np.ndarray, reference: np.ndarray) -> float:
    r"""Dice similarity coefficient of two masks of one shape, in [0, 1].

    .. math:: \mathrm{DSC} = 2 |P \cap R| / (|P| + |R|)
    """
    prediction, reference = _masks(prediction, reference)
    size = int(prediction.sum()) + int(reference.sum())
    return 1.0 if size == 0 else 2.0 * int((prediction & reference).sum()) / size


def hausdorff_distance_95(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """95th percentile of the symmetric Hausdorff distance between the surfaces of two masks.

    The larger of the two directed 95th percentiles, as in ``monai.metrics.compute_hausdorff_distance``.

    Args:
        prediction: mask (Z, Y, X) or (Y, X).
        reference: mask of the same shape.
        spacing: size of a voxel along each axis: mm, or ones for pixels. The result has its unit.
    """
    return _hd95(*_masks(prediction, reference), spacing, surface_distances(prediction, reference, spacing))


def surface_dice(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float) -> float:
    """Share of both surfaces that lies within ``tolerance`` of the other one, in [0, 1].

    Nikolov et al. 2021 (normalised surface Dice), on voxels of the surface as in
    ``monai.metrics.compute_surface_dice``.

    Args:
        prediction: mask (Z, Y, X) or (Y, X).
        reference: mask of the same shape.
        spacing: size of a voxel along each axis.
        tolerance: in the unit of the spacing.
    """
    return _surface_dice(*_masks(prediction, reference), surface_distances(prediction, reference, spacing), tolerance)


def volume_error(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Volume that was segmented too much (or, negative, too little), as a fraction of the reference's; NaN without."""
    prediction, reference = _masks(prediction, reference)
    ours, theirs = int(prediction.sum()), int(reference.sum())
    if theirs == 0:
        return 0.0 if ours == 0 else np.nan
    return (ours - theirs) / theirs


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each surface voxel of one mask to the surface of the other, both ways; none where a mask is empty.

    Args:
        prediction: mask (Z, Y, X) or (Y, X).
        reference: mask of the same shape.
        spacing: size of a voxel along each axis.
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


def _hd95(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    distances: tuple[np.ndarray, np.ndarray],
) -> float:
    if not prediction.any() and not reference.any():
        return 0.0
    if not prediction.any() or not reference.any():
        return float(np.linalg.norm((np.array(prediction.shape) - 1) * np.asarray(spacing)))
    return max(float(np.percentile(directed, PERCENTILE)) for directed in distances)


def _surface_dice(
    prediction: np.ndarray, reference: np.ndarray, distances: tuple[np.ndarray, np.ndarray], tolerance: float
) -> float:
    if not prediction.any() or not reference.any():
        return float(prediction.any() == reference.any())
    near = sum(int((directed <= tolerance).sum()) for directed in distances)
    return near / sum(len(directed) for directed in distances)


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


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[str, int | list[int]],
    spacing: Sequence[float],
    tolerance: float,
) -> list[LabelScore]:
    """Scores of every foreground label or region.

    Where the reference has the label ``ignore``, both are taken as background. For DSC this is to leave these voxels
    out, as nnU-Net's ``compute_metrics`` does; surfaces for HD95 end where the ignored voxels begin.

    Args:
        prediction: label map (Z, Y, X).
        reference: label map of the same shape.
        labels: nnU-Net's ``labels``; a list of values is a region.
        spacing: size of a voxel along (Z, Y, X).
        tolerance: of the surface DSC, in the unit of the spacing.
    """
    if reference.shape[0] == 1:  # a 2D image: nnU-Net gives its missing axis a spacing without meaning
        prediction, reference, spacing = prediction[0], reference[0], tuple(spacing)[1:]
    if "ignore" in labels:
        prediction = np.where(reference == labels["ignore"], 0, prediction)
    scores = []
    for name, value in labels.items():
        if name in ("background", "ignore"):
            continue
        values = value if isinstance(value, list | tuple) else [value]
        ours, theirs = np.isin(prediction, values), np.isin(reference, values)
        distances = surface_distances(ours, theirs, spacing)
        scores.append(
            LabelScore(
                name,
                dice_score(ours, theirs),
                _hd95(ours, theirs, spacing, distances),
                _surface_dice(ours, theirs, distances, tolerance),
                volume_error(ours, theirs),
                _EMPTY[bool(ours.any()), bool(theirs.any())],
            )
        )
    return scores


_EMPTY: dict[tuple[bool, bool], Literal["prediction", "reference", "both"] | None] = {
    (True, True): None,
    (False, True): "prediction",
    (True, False): "reference",
    (False, False): "both",
}


class _MeanOverCases(Metric):
    """Mean of one value per case."""

    full_state_update = False
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def compute(self) -> torch.Tensor:
        return self.total / self.count if self.count > 0 else torch.tensor(torch.nan, dtype=torch.float64)


class DiceScore(_MeanOverCases):
    """Mean DSC over cases (:func:`dice_score`).

    >>> metric = DiceScore()
    >>> metric.update(torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]]))
    >>> round(float(metric.compute()), 3)
    0.667
    """

    is_differentiable = False
    higher_is_better = True

    def update(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Add a case: two masks of one shape."""
        self._add(dice_score(prediction.cpu().numpy(), reference.cpu().numpy()))


class HausdorffDistance95(_MeanOverCases):
    """Mean HD95 over cases (:func:`hausdorff_distance_95`), in the unit of the spacing.

    ``num_undefined`` counts cases where just one mask was empty, which enter the mean with the image's diagonal.

    >>> metric = HausdorffDistance95()
    >>> metric.update(torch.tensor([[1, 0, 0]]), torch.tensor([[0, 0, 1]]), (1.0, 0.5))
    >>> float(metric.compute())
    1.0
    """

    is_differentiable = False
    higher_is_better = False
    num_undefined: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("num_undefined", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: torch.Tensor, reference: torch.Tensor, spacing: Sequence[float]) -> None:
        """Add a case: two masks of one shape, and the size of a voxel along each axis."""
        self._add(hausdorff_distance_95(prediction.cpu().numpy(), reference.cpu().numpy(), spacing))
        self.num_undefined += bool(prediction.any()) != bool(reference.any())
