"""Rounding of what leaves a node under ``fingerprint.precision=quantised``.

Of MRI and CT, 97 to 100 % of a node's cases keep a spacing and shape that no other of its cases has
(docs/explanation/fingerprint.md): :mod:`fednnunet.fingerprint.geometry` is what hides cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fednnunet.fingerprint.bins import IntensityRange
from fednnunet.fingerprint.schema import ChannelIntensities, DatasetFingerprint

SHAPE_GRID = 8
"""Voxels; sizes are rounded to multiples of it, below 64 voxels to those of a finer grid."""
SIGNIFICANT_DIGITS = 2
"""Digits of spacings and ranges."""
RELATIVE_SIZE_GRID = 0.05


def quantise_range(intensities: IntensityRange) -> IntensityRange:
    """A wider range, with bounds of :data:`SIGNIFICANT_DIGITS` digits.

    >>> quantise_range(IntensityRange(low=-1024, high=3071, integer=True))
    IntensityRange(low=-1100.0, high=3100.0, integer=True)
    """
    low, high = _round(intensities.low, math.floor), _round(intensities.high, math.ceil)
    return IntensityRange(low=low, high=high, integer=intensities.integer)


def quantise_fingerprint(fingerprint: DatasetFingerprint) -> DatasetFingerprint:
    """Spacings, shapes, relative sizes and ranges on a grid, in an order that says nothing about cases."""
    shapes = [[_on_grid(size) for size in shape] for shape in fingerprint.shapes_after_crop]
    spacings = [[_round(size, round) for size in spacing] for spacing in fingerprint.spacings]
    grid = RELATIVE_SIZE_GRID
    relative = [min(1.0, max(grid, grid * round(size / grid))) for size in fingerprint.relative_sizes or []]
    cases = sorted(zip(spacings, shapes, strict=True))
    return fingerprint.model_copy(
        update={
            "spacings": [spacing for spacing, _ in cases],
            "shapes_after_crop": [shape for _, shape in cases],
            "relative_sizes": sorted(relative) if fingerprint.relative_sizes is not None else None,
            "intensities": None if fingerprint.intensities is None else quantise_intensities(fingerprint.intensities),
        }
    )


def quantise_intensities(intensities: Mapping[str, ChannelIntensities]) -> dict[str, ChannelIntensities]:
    """The same with wider ranges."""
    return {
        channel: found.model_copy(update={"low": _round(found.low, math.floor), "high": _round(found.high, math.ceil)})
        for channel, found in intensities.items()
    }


def _on_grid(size: int) -> int:
    """The nearest multiple of :data:`SHAPE_GRID`, or below eight times that, of a finer grid: at most 6 % away.

    >>> [_on_grid(size) for size in (130, 61, 9)]
    [128, 60, 9]
    """
    step = min(SHAPE_GRID, max(1, 2 ** (size.bit_length() - 4)))
    return step * round(size / step)


def _round(value: float, rounding: Callable[[float], int]) -> float:
    """``value`` with :data:`SIGNIFICANT_DIGITS` digits, by ``rounding`` to whole numbers."""
    if value == 0:
        return 0.0
    scale = 10.0 ** (math.floor(math.log10(abs(value))) - SIGNIFICANT_DIGITS + 1)
    return float(f"{rounding(round(value / scale, 9)) * scale:.12g}")
