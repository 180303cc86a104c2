"""Devices, and what they can do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fednnunet.config.groups import ComputeConfig
from fednnunet.errors import ConfigError
from fednnunet.training.devices import check_device, memory_fraction, resolve_device
from fednnunet.training.lightning_trainer import build_lightning_trainer

COMPUTE = ComputeConfig(
    device="auto", precision="auto", augmentation_workers=0, preprocessing_workers=1, threads=1, compile=False
)


def test_unknown_device_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match=r"compute.device=mps, but torch sees no Apple GPU"):
            resolve_device("mps")


@pytest.mark.parametrize(
    ("device", "change", "problem"),
    [
        ("mps", {"precision": "16-mixed"}, "compute.precision=16-mixed does not work on mps"),
        ("mps", {"num_devices": 2}, "compute.num_devices=2, but torch sees 1 GPU here"),
    ],
)
def test_what_a_device_cannot_do_is_refused(device: str, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_device(COMPUTE.model_copy(update=change), torch.device(device))


def test_what_a_cpu_can_do_is_not_refused() -> None:
    check_device(COMPUTE.model_copy(update={"precision": "bf16-mixed", "num_devices": 2}), torch.device("cpu"))


def test_memory_target_is_a_part_of_the_gpu() -> None:
    assert memory_fraction(8, 32 * 2**30) == 0.25
    assert memory_fraction(80, 32 * 2**30) == 1.0


def test_the_tasks_of_a_slurm_job_are_not_the_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    nnunet = SimpleNamespace(device=torch.device("cpu"), is_ddp=False, num_epochs=3, current_epoch=1)
    module: Any = SimpleNamespace(nnunet=nnunet, automatic_optimization=True)
    assert build_lightning_trainer(module, COMPUTE, [], tmp_path).world_size == 1
