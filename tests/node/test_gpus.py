"""A worker sees the GPUs that its plan names, and nothing asks for GPUs before that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fednnunet.node import gpus
from fednnunet.node.gpus import find_gpus, use_gpus

FIRST_USE = """
import torch
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
import fednnunet.node.worker_imports
print(asked)
"""


def test_what_workers_are_forked_from_does_not_ask_for_gpus() -> None:
    """CUDA reads CUDA_VISIBLE_DEVICES when it is first asked."""
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_worker_sees_the_gpus_of_its_plan_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    use_gpus(None)
    assert gpus.os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    use_gpus(["GPU-b", "GPU-a"])
    assert gpus.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    gpus._output.cache_clear()
    assert find_gpus() == []


def test_gpus_are_those_that_the_driver_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {gpus.QUERY: "0, GPU-a, 81920\n1, GPU-b, 24564\n", gpus.LIST: ""}
    monkeypatch.setattr(gpus, "_output", told.__getitem__)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert [(gpu.uuid, gpu.number, round(gpu.memory_gb)) for gpu in find_gpus()] == [("GPU-b", 1, 24)]
