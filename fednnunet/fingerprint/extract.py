"""Dataset fingerprint of a node: nnU-Net's own, or the node's contribution to the federation's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from fednnunet.datasets.raw import Case, RawDataset
from fednnunet.fingerprint.local import ChannelIntensities, IntensityBins, IntensityRange, LocalFingerprint

MAX_FOREGROUND_VOXELS = 10e7
"""Foreground voxels that nnU-Net samples from a whole dataset for its intensity statistics."""
SAMPLING_SEED = 1234
"""nnU-Net's, anew for every case (``DatasetFingerprintExtractor.collect_foreground_intensities``)."""
CHUNK = 10**7
"""Samples drawn at a time."""

R = TypeVar("R")


def extract_fingerprint(dataset: RawDataset, workers: int = 1) -> dict[str, Any]:
    """nnU-Net's fingerprint of ``dataset``, JSON-ready.

    Same values as ``DatasetFingerprintExtractor.run``, which starts a pool of processes (each importing
    torch) also for a handful of small images; here ``workers=1`` works in this process.
    """
    reader = _reader(dataset)
    samples = samples_per_case(len(dataset.cases))
    results = _map(partial(_analyse, reader=reader, samples=samples), dataset, workers)
    shapes, spacings, intensities, _, relative_sizes = zip(*results, strict=True)
    channels = {}
    for channel in range(len(dataset.channel_names)):
        values = np.concatenate([case[channel] for case in intensities])
        low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
        channels[str(channel)] = {
            "mean": float(np.mean(values)),
            "median": float(median),
            "std": float(np.std(values)),
            "min": float(np.min(values)),
            "max": float(np.max(values)),
            "percentile_99_5": float(high),
            "percentile_00_5": float(low),
        }
    return {
        "spacings": [[float(value) for value in spacing] for spacing in spacings],
        "shapes_after_crop": [[int(value) for value in shape] for shape in shapes],
        "foreground_intensity_properties_per_channel": channels,
        "median_relative_size_after_cropping": float(np.median(relative_sizes)),
    }


def samples_per_case(cases: int) -> int:
    """Foreground voxels that nnU-Net samples from each case of a dataset of so many."""
    return int(MAX_FOREGROUND_VOXELS // cases)


def intensity_ranges(dataset: RawDataset, workers: int = 1) -> dict[str, IntensityRange]:
    """Range of the foreground intensities of every channel that has any, by channel number."""
    per_case = list(_map(partial(_ranges, reader=_reader(dataset)), dataset, workers))
    ranges = {}
    for channel in range(len(dataset.channel_names)):
        known = [case[channel] for case in per_case if case]
        if known:
            ranges[str(channel)] = IntensityRange(
                low=min(r.low for r in known), high=max(r.high for r in known), integer=all(r.integer for r in known)
            )
    return ranges


def extract_contribution(
    dataset: RawDataset, total_cases: int, bins: Mapping[str, IntensityBins], workers: int = 1
) -> LocalFingerprint:
    """What ``dataset`` adds to the fingerprint of a federation.

    Voxels are sampled as nnU-Net would sample them from the pooled dataset: seeded anew for each case, with
    replacement, so that every case counts the same.

    Args:
        dataset: of the node.
        total_cases: training cases of all nodes.
        bins: common to all nodes, by channel number.
        workers: processes; 1 works in this one.
    """
    channels = [bins[str(channel)] for channel in range(len(dataset.channel_names))]
    analyse = partial(_contribute, reader=_reader(dataset), samples=samples_per_case(total_cases), bins=channels)
    sums = [_Sum(channel) for channel in channels]
    spacings, shapes, relative_sizes = [], [], []
    for case in _map(analyse, dataset, workers):
        spacings.append(case.spacing)
        shapes.append(case.shape)
        relative_sizes.append(case.relative_size)
        for channel, sampled in zip(sums, case.channels, strict=False):  # a case without foreground has none
            channel.add(*sampled)
    return LocalFingerprint(
        spacings=spacings,
        shapes_after_crop=shapes,
        relative_sizes=relative_sizes,
        intensities={str(number): channel.result() for number, channel in enumerate(sums)},
    )


# one case ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sampled:
    """Sampled foreground of one channel of one case."""

    count: int
    mean: float
    squared_deviations: float
    low: float
    high: float


@dataclass(frozen=True)
class _CaseContribution:
    spacing: list[float]
    shape: list[int]
    relative_size: float
    channels: list[tuple[_Sampled, np.ndarray]]
    """Each with its histogram."""


def _contribute(case: Case, reader: type, samples: int, bins: list[IntensityBins]) -> _CaseContribution:
    spacing, shape, relative_size, foreground = _read(case, reader)
    random = np.random.RandomState(SAMPLING_SEED)
    sampled = [
        _sample(values, draw_counts(random, len(values), samples), channel)
        for values, channel in zip(foreground, bins, strict=True)
        if values.size
    ]
    return _CaseContribution(spacing, shape, relative_size, sampled)


def draw_counts(random: np.random.RandomState, population: int, samples: int) -> np.ndarray:
    """How often ``random.choice(population, samples, replace=True)`` draws each; never holds all samples."""
    counts = np.zeros(population, dtype=np.int64)
    for start in range(0, samples, CHUNK):
        counts += np.bincount(random.randint(0, population, min(CHUNK, samples - start)), minlength=population)
    return counts


def _sample(values: np.ndarray, counts: np.ndarray, bins: IntensityBins) -> tuple[_Sampled, np.ndarray]:
    drawn, counts = values[counts > 0].astype(np.float64), counts[counts > 0]
    total = int(counts.sum())
    mean = float(np.dot(drawn, counts) / total)
    histogram = np.zeros(bins.number, dtype=np.int64)
    np.add.at(histogram, bins.index(drawn), counts)
    squares = float(np.dot((drawn - mean) ** 2, counts))
    return _Sampled(total, mean, squares, float(drawn.min()), float(drawn.max())), histogram


class _Sum:
    """Sampled intensities of one channel over cases; one histogram is held, not one a case."""

    def __init__(self, bins: IntensityBins) -> None:
        self.bins = bins
        self.histogram = np.zeros(bins.number, dtype=np.int64)
        self.cases: list[_Sampled] = []

    def add(self, case: _Sampled, histogram: np.ndarray) -> None:
        self.histogram += histogram
        self.cases.append(case)

    def result(self) -> ChannelIntensities:
        counts = np.array([case.count for case in self.cases], dtype=np.float64)
        means = np.array([case.mean for case in self.cases])
        mean = float(np.dot(counts, means) / counts.sum()) if self.cases else 0.0
        within = sum(case.squared_deviations for case in self.cases)
        return ChannelIntensities(
            count=int(counts.sum()),
            mean=mean,
            squared_deviations=float(np.dot(counts, (means - mean) ** 2) + within),
            low=min((case.low for case in self.cases), default=0.0),
            high=max((case.high for case in self.cases), default=0.0),
            bins=self.bins,
            histogram=self.histogram.tolist(),
        )


def _ranges(case: Case, reader: type) -> list[IntensityRange]:
    *_, foreground = _read(case, reader)
    if not foreground[0].size:
        return []
    return [
        IntensityRange(low=float(v.min()), high=float(v.max()), integer=bool((v == np.rint(v)).all()))
        for v in foreground
    ]


def _read(case: Case, reader: type) -> tuple[list[float], list[int], float, list[np.ndarray]]:
    """Spacing, shape after cropping, relative size, and foreground values of each channel, as nnU-Net takes them."""
    images, properties = reader().read_images([str(image) for image in case.images])
    segmentation, _ = reader().read_seg(str(case.label))
    cropped, labels, _ = crop_to_nonzero(images, segmentation)
    mask = labels[0] > 0
    return (
        [float(value) for value in properties["spacing"]],
        [int(size) for size in cropped.shape[1:]],
        float(np.prod(cropped.shape[1:]) / np.prod(images.shape[1:])),
        [channel[mask] for channel in cropped],
    )


def _analyse(case: Case, reader: type, samples: int) -> tuple:
    images = [str(image) for image in case.images]
    return DatasetFingerprintExtractor.analyze_case(images, str(case.label), reader, samples)


def _reader(dataset: RawDataset) -> type:
    return determine_reader_writer_from_dataset_json(dataset.dataset_json, str(dataset.cases[0].images[0]))


def _map(function: Callable[[Case], R], dataset: RawDataset, workers: int) -> Iterator[R]:
    if workers == 1:
        yield from map(function, dataset.cases)
        return
    with multiprocessing.get_context("forkserver").Pool(workers) as pool:
        yield from pool.imap(function, dataset.cases)
