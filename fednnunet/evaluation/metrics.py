"""Metrics of segmentations as torchmetrics classes: calling one gives a case's value, ``compute`` the mean over cases.

What is computed of two masks is in :mod:`~fednnunet.evaluation.functional`, where also the rule for empty masks
stands. :class:`SegmentationMetrics` applies all of them to every label or region of a label map. Reports count and list
cases with an empty mask (:attr:`LabelScore.empty`); :class:`HausdorffDistance95` counts them in ``num_undefined``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torchmetrics import Metric, MetricCollection

from fednnunet.config.task import RESERVED
from fednnunet.evaluation.functional import (
    SurfaceDistances,
    dice_score,
    hausdorff_distance_95,
    surface_dice,
    surface_distances,
    volume_error,
)

Labels = Mapping[str, int | list[int]]
"""nnU-Net's ``labels``: name to the value in label maps; a list of values is a region."""


class _MeanOverCases(Metric):
    """Mean of one value per case; cases without a value (NaN) are left out."""

    full_state_update = False
    is_differentiable = False
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, value: float) -> None:
        if not math.isnan(value):
            self.total += value
            self.count += 1

    def compute(self) -> torch.Tensor:
        return self.total / self.count if self.count > 0 else torch.tensor(torch.nan, dtype=torch.float64)


class DiceScore(_MeanOverCases):
    """Mean DSC over cases (:func:`~fednnunet.evaluation.functional.dice_score`), in [0, 1].

    >>> metric = DiceScore()
    >>> metric.update(torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]]))
    >>> round(float(metric.compute()), 3)
    0.667
    """

    higher_is_better = True

    def update(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Add a case: two masks of one shape."""
        self._add(dice_score(prediction.cpu().numpy(), reference.cpu().numpy()))


class HausdorffDistance95(_MeanOverCases):
    """Mean HD95 over cases (:func:`~fednnunet.evaluation.functional.hausdorff_distance_95`), in the spacing's unit.

    ``num_undefined`` counts cases where just one mask was empty, which enter the mean with the image's diagonal.

    >>> metric = HausdorffDistance95()
    >>> metric.update(torch.tensor([[1, 0, 0]]), torch.tensor([[0, 0, 1]]), (1.0, 0.5))
    >>> float(metric.compute())
    1.0
    """

    higher_is_better = False
    num_undefined: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("num_undefined", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        prediction: torch.Tensor,
        reference: torch.Tensor,
        spacing: Sequence[float],
        distances: SurfaceDistances | None = None,
    ) -> None:
        """Add a case: two masks of one shape, size of a voxel along each axis, distances where they are known."""
        self._add(hausdorff_distance_95(prediction.cpu().numpy(), reference.cpu().numpy(), spacing, distances))
        self.num_undefined += bool(prediction.any()) != bool(reference.any())


class SurfaceDice(_MeanOverCases):
    """Mean surface DSC over cases (:func:`~fednnunet.evaluation.functional.surface_dice`), in [0, 1].

    Args:
        tolerance: distance at which two surfaces count as one, in the unit of the spacing.

    >>> metric = SurfaceDice(tolerance=1.0)
    >>> metric.update(torch.tensor([[1, 0, 0]]), torch.tensor([[0, 1, 0]]), (1.0, 0.5))
    >>> float(metric.compute())
    1.0
    """

    higher_is_better = True

    def __init__(self, tolerance: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tolerance = tolerance

    def update(
        self,
        prediction: torch.Tensor,
        reference: torch.Tensor,
        spacing: Sequence[float],
        distances: SurfaceDistances | None = None,
    ) -> None:
        """Add a case: two masks of one shape, size of a voxel along each axis, distances where they are known."""
        masks = prediction.cpu().numpy(), reference.cpu().numpy()
        self._add(surface_dice(*masks, spacing, self.tolerance, distances))


class VolumeError(_MeanOverCases):
    """Mean volume error over cases with a reference (:func:`~fednnunet.evaluation.functional.volume_error`).

    >>> metric = VolumeError()
    >>> metric.update(torch.tensor([1, 0, 0]), torch.tensor([1, 1, 0]))
    >>> metric.update(torch.tensor([1, 0, 0]), torch.tensor([0, 0, 0]))  # no reference: no value
    >>> float(metric.compute())
    -0.5
    """

    higher_is_better = None

    def update(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Add a case: two masks of one shape."""
        self._add(volume_error(prediction.cpu().numpy(), reference.cpu().numpy()))


class LabelScore(NamedTuple):
    """Scores of one label or region in one case.

    Attributes:
        label: its name.
        dsc: Dice similarity coefficient, in [0, 1].
        hd95: 95th percentile of the Hausdorff distance, in the unit of the spacing.
        surface_dsc: share of both surfaces within the tolerance of the other, in [0, 1].
        volume_error: volume segmented too much, as a fraction of the reference's; NaN without a reference.
        empty: which of the two masks is empty.
    """

    label: str
    dsc: float
    hd95: float
    surface_dsc: float
    volume_error: float
    empty: Literal["prediction", "reference", "both"] | None


class SegmentationMetrics:
    """All metrics of every foreground label or region; a call adds a case and returns its scores.

    Where the reference has the label ``ignore``, prediction and reference are taken as background. For DSC this is to
    leave these voxels out, as nnU-Net's ``compute_metrics`` does; surfaces for HD95 end where the ignored voxels begin.

    Args:
        labels: nnU-Net's ``labels``.
        tolerance: tolerance of the surface DSC, in the unit of the spacing.

    Attributes:
        num_cases: label or region to the number of cases that it was scored in.

    >>> metrics = SegmentationMetrics({"background": 0, "tumour": 1}, tolerance=1.0)
    >>> prediction, reference = np.array([[[0, 1, 1]]]), np.array([[[0, 0, 1]]])
    >>> [score] = metrics(prediction, reference, spacing=(5.0, 1.0, 1.0))
    >>> score.label, round(score.dsc, 3), score.volume_error
    ('tumour', 0.667, 1.0)
    >>> round(metrics.compute()["tumour"]["dsc"], 3)
    0.667
    """

    def __init__(self, labels: Labels, tolerance: float) -> None:
        self.labels = labels
        self.num_cases = {name: 0 for name in labels if name not in RESERVED}
        # Only rank 0 of a node with several devices scores: it must not wait for the others. Compute groups would
        # merge metrics whose first case has the same value.
        self._metrics = {
            name: MetricCollection(
                {
                    "dsc": DiceScore(sync_on_compute=False),
                    "hd95": HausdorffDistance95(sync_on_compute=False),
                    "surface_dsc": SurfaceDice(tolerance, sync_on_compute=False),
                    "volume_error": VolumeError(sync_on_compute=False),
                },
                compute_groups=False,
            )
            for name in self.num_cases
        }

    def __call__(
        self,
        prediction: np.ndarray,
        reference: np.ndarray,
        spacing: Sequence[float],
        annotated: Collection[str] | None = None,
    ) -> list[LabelScore]:
        """Add a case.

        Args:
            prediction: label map (Z, Y, X).
            reference: label map of the same shape.
            spacing: size of a voxel along (Z, Y, X).
            annotated: labels that the reference has; it says nothing of others, which are not scored. None for all.

        Returns:
            Scores of every foreground label or region that is annotated.
        """
        if reference.shape[0] == 1:  # a 2D image: nnU-Net gives its missing axis a spacing without meaning
            prediction, reference, spacing = prediction[0], reference[0], tuple(spacing)[1:]
        if "ignore" in self.labels:
            prediction = np.where(reference == self.labels["ignore"], 0, prediction)
        scores = []
        for name, metrics in self._metrics.items():
            if annotated is not None and name not in annotated:
                continue
            self.num_cases[name] += 1
            ours, theirs = (np.isin(label_map, self.labels[name]) for label_map in (prediction, reference))
            values = metrics(
                prediction=torch.from_numpy(ours),
                reference=torch.from_numpy(theirs),
                spacing=spacing,
                distances=surface_distances(ours, theirs, spacing),
            )
            empty = _EMPTY[bool(ours.any()), bool(theirs.any())]
            scores.append(LabelScore(name, **{metric: float(value) for metric, value in values.items()}, empty=empty))
        return scores

    def compute(self) -> dict[str, dict[str, float]]:
        """Label or region that was scored, to the mean over cases of each metric; NaN where no case has a value."""
        return {
            name: {metric: float(value) for metric, value in metrics.compute().items()}
            for name, metrics in self._metrics.items()
            if self.num_cases[name]
        }


_EMPTY: dict[tuple[bool, bool], Literal["prediction", "reference", "both"] | None] = {
    (True, True): None,
    (False, True): "prediction",
    (True, False): "reference",
    (False, False): "both",
}
