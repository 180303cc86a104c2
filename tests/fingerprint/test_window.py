"""Only what nnU-Net normalises by is told, and no extremum of it."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
)

from fednnunet.fingerprint.bins import IntensityBins, IntensityRange
from fednnunet.fingerprint.merge import merge_intensities
from fednnunet.fingerprint.schema import ChannelIntensities
from fednnunet.fingerprint.window import BY_THE_DATASET, WINDOW, needed_channels, open_tails, within_window
from fednnunet.planning.plans import BY_THE_IMAGE

BINS = IntensityBins.over([IntensityRange(low=WINDOW[0], high=WINDOW[1], integer=True)])


def sampled(values: np.ndarray) -> ChannelIntensities:
    return ChannelIntensities(
        count=values.size,
        mean=float(values.mean()),
        squared_deviations=float(values.var() * values.size),
        low=float(values.min()),
        high=float(values.max()),
        bins=BINS,
        histogram=np.bincount(BINS.index(values), minlength=BINS.number).tolist(),
    )


def test_the_channels_are_those_that_nnunet_normalises_by_all_cases() -> None:
    schemes = channel_name_to_normalization_mapping
    by_the_dataset = [name for name, scheme in schemes.items() if scheme.__name__ not in BY_THE_IMAGE]
    assert by_the_dataset == list(BY_THE_DATASET)
    assert [schemes[name] for name in BY_THE_DATASET] == [CTNormalization]
    names = {"0": "Ct", "1": "CT scan", "2": "zscore", "3": "rescale_to_0_1", "4": "rgb_to_0_1", "5": "noNorm"}
    assert needed_channels(names) == ["0"]


@pytest.mark.parametrize("integer", [True, False])
def test_the_window_stands_for_every_range(integer: bool) -> None:
    told = within_window(IntensityRange(low=-2000, high=30000, integer=integer))
    assert told == IntensityRange(low=-1024, high=3071, integer=integer)


def test_what_nnunet_needs_is_that_of_the_pooled_voxels() -> None:
    """Two scanners, metal beyond the window at one of them."""
    rng = np.random.default_rng(0)
    nodes = [np.rint(rng.normal(mean, 60, 40_000)) for mean in (40, 110)]
    nodes[0][:20] = 8000
    merged = merge_intensities([open_tails(sampled(values)) for values in nodes])
    pooled = np.concatenate(nodes)
    assert merged["mean"] == pytest.approx(pooled.mean())
    assert merged["std"] == pytest.approx(pooled.std())
    for name, percent in {"percentile_00_5": 0.5, "median": 50, "percentile_99_5": 99.5}.items():
        assert merged[name] == np.percentile(pooled, percent)


def test_no_extremum_leaves() -> None:
    rng = np.random.default_rng(1)
    values = np.rint(rng.normal(40, 30, 100_000))
    values[0], values[1] = -900, 2500
    told = open_tails(sampled(values))
    assert (told.low, told.high) == WINDOW
    filled = np.flatnonzero(told.histogram)
    assert told.histogram[filled[0]] > 1e-4 * values.size
    assert told.histogram[filled[-1]] > 1e-4 * values.size
    assert sum(told.histogram) == values.size
    assert values.min() < filled[0] + WINDOW[0] < filled[-1] + WINDOW[0] < values.max()


def test_a_node_without_foreground_tells_nothing() -> None:
    nothing = ChannelIntensities(
        count=0, mean=0, squared_deviations=0, low=0, high=0, bins=BINS, histogram=[0] * BINS.number
    )
    assert open_tails(nothing).histogram == nothing.histogram
