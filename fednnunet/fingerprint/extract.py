"""Dataset fingerprint of a node, by nnU-Net's own analysis of each case."""

from __future__ import annotations

import multiprocessing
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from fednnunet.datasets.raw import Case, RawDataset

MAX_FOREGROUND_VOXELS = 10e7
"""Foreground voxels that nnU-Net samples from a whole dataset for its intensity statistics."""


def extract_fingerprint(dataset: RawDataset, workers: int = 1) -> dict[str, Any]:
    """nnU-Net's fingerprint of ``dataset``, JSON-ready.

    Same values as ``DatasetFingerprintExtractor.run``, which starts a pool of processes (each importing
    torch) also for a handful of small images; here ``workers=1`` works in this process.
    """
    reader = determine_reader_writer_from_dataset_json(dataset.dataset_json, str(dataset.cases[0].images[0]))
    samples = int(MAX_FOREGROUND_VOXELS // len(dataset.cases))
    analyse = partial(_analyse, reader=reader, samples=samples)
    if workers == 1:
        results = [analyse(case) for case in dataset.cases]
    else:
        with multiprocessing.get_context("forkserver").Pool(workers) as pool:
            results = pool.map(analyse, dataset.cases, chunksize=1)
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


def _analyse(case: Case, reader: type, samples: int) -> tuple:
    images = [str(image) for image in case.images]
    return DatasetFingerprintExtractor.analyze_case(images, str(case.label), reader, samples)
