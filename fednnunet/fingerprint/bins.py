"""Ranges of foreground intensities, and the bins of the histogram that all nodes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

BINS = 2**16
"""Bins of a histogram of intensities that are not integers; a bin is 1.5e-5 of the range."""
MAX_INTEGER_BINS = 2**20
"""Integer intensities have one bin per value, where their range is not wider than this."""
LARGEST = float(np.finfo(np.float32).max)
"""Largest intensity: images are read as float32."""

Intensity = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class StrictModel(BaseModel):
    """Base that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IntensityRange(StrictModel):
    """Range of the foreground intensities of one channel, at one node or at all.

    Attributes:
        low: smallest value.
        high: largest value.
        integer: whether all values are integers.
    """

    low: Intensity
    high: Intensity
    integer: bool

    @model_validator(mode="after")
    def _in_order(self) -> IntensityRange:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class IntensityBins(StrictModel):
    """Bins of a histogram.

    Attributes:
        low: lower edge of the first bin.
        width: width of a bin.
        number: number of bins.
        integer: whether each bin holds one integer value.
    """

    low: float
    width: float = Field(gt=0)
    number: int = Field(ge=1, le=MAX_INTEGER_BINS)
    integer: bool

    @classmethod
    def over(cls, ranges: Sequence[IntensityRange]) -> IntensityBins:
        """Bins over the ranges of all nodes.

        Raises:
            ValueError: no ranges.

        >>> node, other = (IntensityRange(low=low, high=low + 5, integer=True) for low in (-2, 2))
        >>> IntensityBins.over([node, other])
        IntensityBins(low=-2.0, width=1.0, number=10, integer=True)
        """
        if not ranges:
            raise ValueError("there is no range to divide into bins")
        low, high = min(r.low for r in ranges), max(r.high for r in ranges)
        number = high - low + 1
        if all(r.integer for r in ranges) and number <= MAX_INTEGER_BINS:
            return cls(low=low, width=1.0, number=int(number), integer=True)
        return cls(low=low, width=(high - low) / BINS or 1.0, number=BINS, integer=False)

    def index(self, values: np.ndarray) -> np.ndarray:
        """Index of the bin of each of ``values``, which lie in the range."""
        place = (values.astype(np.float64) - self.low) / self.width
        return np.clip(place, 0, self.number - 1).astype(np.int64)


def histogram_bins_over(ranges: Sequence[Mapping[str, IntensityRange]]) -> dict[str, IntensityBins]:
    """Bins of every channel over the ranges of all nodes that have foreground in it.

    Raises:
        ValueError: a channel has no range.
    """
    channels = dict.fromkeys(channel for node in ranges for channel in node)
    return {channel: IntensityBins.over([node[channel] for node in ranges if channel in node]) for channel in channels}
