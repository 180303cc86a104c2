"""Federated fingerprint: the nodes' contributions merged by the server (paper, FFE).

``histogram`` builds the fingerprint that nnU-Net would extract from the pooled images: counts, sums and histograms
add up. ``weighted_mean`` is the original FednnU-Net's rule: nnU-Net's statistics of the nodes, averaged with the number
of cases as weight, which leaves out the variance between centres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fednnunet.fingerprint.bins import IntensityBins
from fednnunet.fingerprint.schema import ChannelIntensities, DatasetFingerprint, IntensityProperties

PERCENTILES = {"percentile_00_5": 0.5, "median": 50.0, "percentile_99_5": 99.5}


def merge_fingerprints(parts: Sequence[DatasetFingerprint], channels: Sequence[str] | None = None) -> dict[str, Any]:
    """Merge the contributions of all nodes into one fingerprint in nnU-Net's format.

    Shapes and spacings are concatenated (paper). From contributions that add up, sizes, means, standard deviations,
    minima and maxima are those of the pooled dataset up to float rounding; median and percentiles are exact for integer
    intensities and within one bin for others. nnU-Net's own fingerprints are averaged, as in the original. Intensities
    of a channel are those of the nodes that have it.

    Args:
        parts: contributions of the nodes, all of one kind.
        channels: numbers of all channels, where nodes may lack some; None where all nodes must have the same ones.

    Returns:
        nnU-Net's ``dataset_fingerprint.json``.

    Raises:
        ValueError: no parts, parts of both kinds, with different channels or bins, or a channel without foreground.

    >>> from fednnunet.fingerprint.schema import IntensityProperties
    >>> def node(cases: int, mean: float) -> DatasetFingerprint:
    ...     intensities = IntensityProperties(
    ...         max=9, mean=mean, median=mean, min=0, percentile_00_5=0, percentile_99_5=9, std=1
    ...     )
    ...     return DatasetFingerprint(
    ...         spacings=[[1, 1, 1]] * cases,
    ...         shapes_after_crop=[[8, 8, 8]] * cases,
    ...         foreground_intensity_properties_per_channel={"0": intensities},
    ...         median_relative_size_after_cropping=1.0,
    ...     )
    >>> merged = merge_fingerprints([node(cases=1, mean=2.0), node(cases=3, mean=6.0)])
    >>> len(merged["spacings"]), merged["foreground_intensity_properties_per_channel"]["0"]["mean"]
    (4, 5.0)
    """
    if not parts:
        raise ValueError("there is no fingerprint to merge")
    if len({part.adds_up for part in parts}) > 1:
        raise ValueError("fingerprints are of two kinds: some add up, some are nnU-Net's statistics")
    if channels is None:
        channels = parts[0].channels
        for other in parts:
            if set(other.channels) != set(channels):
                raise ValueError(
                    f"fingerprints have different channels: {', '.join(channels)} and {', '.join(other.channels)}"
                )
    merged = _pooled(parts, channels) if parts[0].adds_up else _weighted_means(parts, channels)
    return {
        "spacings": [spacing for part in parts for spacing in part.spacings],
        "shapes_after_crop": [shape for part in parts for shape in part.shapes_after_crop],
        **merged,
    }


# histogram ---------------------------------------------------------------------------------------------


def _pooled(parts: Sequence[DatasetFingerprint], channels: Sequence[str]) -> dict[str, Any]:
    return {
        "foreground_intensity_properties_per_channel": merge_channels(
            [part.intensities or {} for part in parts], channels
        ),
        "median_relative_size_after_cropping": float(
            np.median([size for part in parts for size in part.relative_sizes or []])
        ),
    }


def merge_channels(
    parts: Sequence[Mapping[str, ChannelIntensities]], channels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """:func:`merge_intensities` of every channel, by its number, over the parts that have it."""
    return {
        channel: merge_intensities([part[channel] for part in parts if channel in part], channel)
        for channel in channels
    }


def merge_intensities(parts: Sequence[ChannelIntensities], channel: str = "0") -> dict[str, float]:
    """nnU-Net's statistics of the pooled samples of one channel.

    Raises:
        ValueError: no parts, different bins, or no foreground at all.

    >>> bins = IntensityBins(low=0, width=1, number=3, integer=True)
    >>> zeros = ChannelIntensities(
    ...     count=3, mean=0, squared_deviations=0, low=0, high=0, bins=bins, histogram=[3, 0, 0]
    ... )
    >>> two = ChannelIntensities(count=1, mean=2, squared_deviations=0, low=2, high=2, bins=bins, histogram=[0, 0, 1])
    >>> merged = merge_intensities([zeros, two])
    >>> merged["mean"], merged["median"], merged["max"]
    (0.5, 0.0, 2.0)
    """
    if len({part.bins for part in parts}) > 1:
        raise ValueError(f"channel {channel}: histograms have different bins")
    filled = [part for part in parts if part.count]
    if not filled:
        raise ValueError(f"channel {channel}: no node has foreground")
    counts = np.array([part.count for part in filled], dtype=np.float64)
    means = np.array([part.mean for part in filled])
    mean = float(np.dot(counts, means) / counts.sum())
    # Between the nodes, and within them (Chan, Golub and LeVeque 1983).
    squares = float(np.dot(counts, (means - mean) ** 2) + sum(part.squared_deviations for part in filled))
    low, high = min(part.low for part in filled), max(part.high for part in filled)
    below = np.cumsum(np.sum([np.asarray(part.histogram, dtype=np.int64) for part in filled], axis=0))
    count, value_at = int(below[-1]), partial(_value_at, below, filled[0].bins)
    return {
        "max": high,
        "mean": mean,
        **{name: float(np.clip(percentile(value_at, count, q), low, high)) for name, q in PERCENTILES.items()},
        "min": low,
        "std": float(np.sqrt(squares / counts.sum())),
    }


def percentile(value_at: Callable[[int], float], count: int, percent: float) -> float:
    """Percentile as of ``numpy.percentile``, from the values by rank.

    Args:
        value_at: gives the value of a rank, counted from 0.
        count: number of values.
        percent: in [0, 100].

    >>> percentile([10.0, 20.0, 40.0].__getitem__, count=3, percent=75)
    30.0
    """
    rank = (count - 1) * (percent / 100)
    first = int(np.floor(rank))
    a, b = value_at(first), value_at(min(first + 1, count - 1))
    part, difference = rank - first, float(b - a)  # in the precision of the values, as numpy
    return float(b) - difference * (1 - part) if part >= 0.5 else float(a) + difference * part


def _value_at(below: np.ndarray, bins: IntensityBins, rank: int) -> float:
    """Value of this rank; values that are not integers are taken as evenly spread over their bin."""
    place = int(np.searchsorted(below, rank, side="right"))
    if bins.integer:
        return bins.low + place
    before = int(below[place - 1]) if place else 0
    return bins.low + bins.width * (place + (rank - before + 0.5) / (int(below[place]) - before))


# weighted mean -----------------------------------------------------------------------------------------


def _weighted_means(parts: Sequence[DatasetFingerprint], channels: Sequence[str]) -> dict[str, Any]:
    return {
        "foreground_intensity_properties_per_channel": {
            channel: _mean_intensities(parts, channel) for channel in channels
        },
        "median_relative_size_after_cropping": _mean(
            [part.median_relative_size_after_cropping or 0.0 for part in parts], [part.num_cases for part in parts]
        ),
    }


def _mean_intensities(parts: Sequence[DatasetFingerprint], channel: str) -> dict[str, float]:
    """Means over the nodes that have foreground."""
    properties, cases = [], []
    for part in parts:
        of_channel = (part.foreground_intensity_properties_per_channel or {}).get(channel)
        if isinstance(of_channel, IntensityProperties):
            properties.append(of_channel)
            cases.append(part.num_cases)
    if not properties:
        raise ValueError(f"channel {channel}: no node has foreground")
    return {
        "max": max(p.max for p in properties),
        "mean": _mean([p.mean for p in properties], cases),
        "median": _mean([p.median for p in properties], cases),
        "min": min(p.min for p in properties),
        "percentile_00_5": _mean([p.percentile_00_5 for p in properties], cases),
        "percentile_99_5": _mean([p.percentile_99_5 for p in properties], cases),
        "std": _mean([p.std for p in properties], cases),
    }


def _mean(values: Sequence[float], cases: Sequence[int]) -> float:
    weights = np.array(cases, dtype=np.float64)
    return float(np.dot(values, weights / weights.sum()))
