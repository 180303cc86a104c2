"""Intensities that nnU-Net needs, in a window that is the same for everybody (``fingerprint.intensities=needed``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fednnunet.fingerprint.bins import IntensityRange
from fednnunet.fingerprint.schema import ChannelIntensities

BY_THE_DATASET = ("ct",)
"""Names of channels that nnU-Net normalises by all cases' foreground (``channel_name_to_normalization_mapping``)."""
WINDOW = (-1024.0, 3071.0)
"""HU; values beyond it are counted at its ends."""
TAIL = 1e-4
"""Part of a node's voxels, at either end, that are counted at the value that bounds them: no extremum is told."""


def needed_channels(channel_names: Mapping[str, str]) -> list[str]:
    """Numbers of the channels whose intensities nnU-Net's plans need.

    >>> needed_channels({"0": "CT", "1": "T1"})
    ['0']
    """
    return [number for number, name in channel_names.items() if name.casefold() in BY_THE_DATASET]


def within_window(intensities: IntensityRange) -> IntensityRange:
    """The window in the place of a node's range; it tells only whether all values are integers."""
    return IntensityRange(low=WINDOW[0], high=WINDOW[1], integer=intensities.integer)


def open_tails(intensities: ChannelIntensities) -> ChannelIntensities:
    """The same without its extrema: :data:`TAIL` of the voxels moves inwards to the bin that bounds it."""
    histogram = np.array(intensities.histogram, dtype=np.int64)
    few = TAIL * intensities.count
    for counts in (histogram, histogram[::-1]):  # a view: both change the histogram
        bound = int(np.searchsorted(np.cumsum(counts), few, side="right")) if intensities.count else 0
        moved = int(counts[:bound].sum())
        counts[:bound] = 0
        counts[bound] += moved
    return intensities.model_copy(update={"low": WINDOW[0], "high": WINDOW[1], "histogram": histogram.tolist()})
