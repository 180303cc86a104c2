"""A node's fingerprint is nnU-Net's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from fednnunet.datasets.raw import read_dataset
from fednnunet.fingerprint import LocalFingerprint
from fednnunet.fingerprint.extract import extract_fingerprint


@pytest.mark.slow
def test_fingerprint_is_that_of_nnunets_extractor(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset()
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    extractor = DatasetFingerprintExtractor(folder.name, num_processes=1)
    extractor.show_progress_bar = False
    extractor.run()
    theirs = json.loads((tmp_path / "preprocessed" / folder.name / "dataset_fingerprint.json").read_text())
    ours = extract_fingerprint(read_dataset(folder, "A"))
    assert json.loads(json.dumps(ours)) == theirs
    assert LocalFingerprint.parse(ours, "A").num_cases == 6
