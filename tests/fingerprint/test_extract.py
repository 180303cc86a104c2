"""A node's fingerprint is nnU-Net's own."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from fednnunet.datasets.raw import read_dataset
from fednnunet.fingerprint import DatasetFingerprint, extract
from fednnunet.fingerprint.extract import SAMPLING_SEED, _statistics, extract_fingerprint
from tests.support.raw_datasets import rewrite

FEWER_VOXELS = 1e6
"""Many times the foreground that there is, as with nnU-Net's 1e8, in a hundredth of the time."""


@pytest.mark.integration
def test_fingerprint_is_that_of_nnunets_extractor(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset()
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    forked = multiprocessing.get_context("forkserver")  # a process that is spawned imports nnU-Net again
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forked)
    extractor = DatasetFingerprintExtractor(folder.name, num_processes=1)
    extractor.show_progress_bar = False
    assert extractor.num_foreground_voxels_for_intensitystats == extract.MAX_FOREGROUND_VOXELS
    extractor.num_foreground_voxels_for_intensitystats = FEWER_VOXELS
    monkeypatch.setattr(extract, "MAX_FOREGROUND_VOXELS", FEWER_VOXELS)
    extractor.run()
    theirs = json.loads((tmp_path / "preprocessed" / folder.name / "dataset_fingerprint.json").read_text())
    ours = extract_fingerprint(read_dataset(folder, "A"))
    assert json.loads(json.dumps(ours)) == theirs
    assert DatasetFingerprint.parse(ours, "A").num_cases == 6


@pytest.mark.parametrize("seed", range(20))
def test_statistics_are_numpys_of_the_samples_to_the_bit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cases = [generator.normal(100, 30, size).astype(np.float32) for size in generator.integers(1, 500, 4)]
    samples = int(generator.integers(1, 2000))
    drawn = np.concatenate([np.random.RandomState(SAMPLING_SEED).choice(c, samples, replace=True) for c in cases])
    low, median, high = np.percentile(drawn, (0.5, 50.0, 99.5))
    assert _statistics([(np.random.RandomState(SAMPLING_SEED), c) for c in cases], samples) == {
        "mean": float(np.mean(drawn)),
        "median": float(median),
        "std": float(np.std(drawn)),
        "min": float(np.min(drawn)),
        "max": float(np.max(drawn)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }


def test_a_centre_without_foreground_has_a_fingerprint_without_intensities(
    make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "MAX_FOREGROUND_VOXELS", FEWER_VOXELS)
    folder = make_dataset()
    with_foreground = extract_fingerprint(read_dataset(folder, "A"))
    for label in (folder / "labelsTr").iterdir():
        rewrite(label, lambda voxels: voxels * 0)
    ours = extract_fingerprint(read_dataset(folder, "A"))
    name = "foreground_intensity_properties_per_channel"
    assert ours == with_foreground | {name: {"0": {}}}
    assert DatasetFingerprint.parse(ours, "A").to_dict() == ours
