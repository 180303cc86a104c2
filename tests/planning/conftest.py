"""A dataset in nnU-Net's folders, and its plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednnunet.config.groups import ModelConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import stage_dataset
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning.plans import make_plans
from tests.conftest import write_boxes

Plan = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """nnU-Net's folders, a dataset in them, its fingerprint."""
    root = tmp_path_factory.mktemp("planning")
    dataset = read_dataset(write_boxes(root / "raw"), "A")
    stage_dataset(dataset, root / "nnUNet_raw")
    return root, dataset.name, extract_fingerprint(dataset)


@pytest.fixture
def nnunet_folders(staged: tuple[Path, str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's variables name the folders of :func:`staged`."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(staged[0] / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.fixture
def plan(staged: tuple[Path, str, dict[str, Any]]) -> Plan:
    _, name, fingerprint = staged

    def make(memory: float | None = 8.0, planner: str = "ExperimentPlanner", **options: Any) -> dict[str, Any]:
        return make_plans(name, fingerprint, ModelConfig(planner=planner, **options), memory)

    return make
