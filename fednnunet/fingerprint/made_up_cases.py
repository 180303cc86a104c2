"""A few cases with given order statistics, for nnU-Net's planners: what they read, and nothing of any real case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MASK_BELOW = 0.75
"""Median relative size below which nnU-Net normalises within the nonzero mask."""
TAIL = 8
"""Cases at the 10th percentile, and as many that are larger in everything."""


@dataclass(frozen=True)
class AxisStatistics:
    """Order statistics of an axis.

    Attributes:
        spacing: median, mm.
        shapes: of the two cases in the middle, voxels.
        extents: spacing times shape of the two cases in the middle, mm.
        tenth: 10th percentile of the spacing, mm; None where it is not needed.
    """

    spacing: float
    shapes: tuple[int, int]
    extents: tuple[float, float]
    tenth: float | None = None


@dataclass(frozen=True)
class Statistics:
    """What nnU-Net's planners read.

    Attributes:
        axes: (Z, Y, X).
        cropped: whether the median relative size is below :data:`MASK_BELOW`.
    """

    axes: tuple[AxisStatistics, ...]
    cropped: bool

    def fingerprint(self) -> dict[str, Any]:
        """The geometry of a fingerprint in nnU-Net's format: made-up cases with these statistics, and no others."""
        spacings, shapes = zip(*(made_up_axis(axis) for axis in self.axes), strict=True)
        return {
            "spacings": np.transpose(spacings).tolist(),
            "shapes_after_crop": np.transpose(shapes).tolist(),
            "median_relative_size_after_cropping": MASK_BELOW / 2 if self.cropped else 1.0,
        }


def made_up_axis(axis: AxisStatistics) -> tuple[list[float], list[int]]:
    """Spacings and shapes of 26 cases with these order statistics.

    Two cases a median has its value and are extreme otherwise; the others hold the ranks in balance.
    """
    spacing, (lower, upper) = axis.spacing, axis.shapes
    first = max(axis.extents[0], spacing)  # a shape is at least 1
    second = max(axis.extents[1], first)
    small = min(spacing, first / upper)
    large = max(upper, int(np.ceil(second / spacing)))
    tenth = min(axis.tenth or spacing, spacing)
    cases = [
        *[(spacing, 1)] * 2,
        *[(small, lower), (small, upper)],
        *[(first, 1), (second, 1)],
        *[(spacing, large)] * 4,
        *[(tenth, 1)] * TAIL,
        *[(second, large)] * TAIL,
    ]
    return [s for s, _ in cases], [n for _, n in cases]
