"""The device that a node computes on: what it can do, and how much of its memory may be used."""

from __future__ import annotations

import logging

import torch

from fednnunet.config.groups import ComputeConfig
from fednnunet.errors import ConfigError

log = logging.getLogger(__name__)

GIGABYTE = 2**30
"""Bytes; as in the names of GPUs."""


def resolve_device(name: str) -> torch.device:
    """The torch device of ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: the device was asked for and does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute.device=cuda, but torch sees no CUDA GPU here; use compute.device=cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("compute.device=mps, but torch sees no Apple GPU here; use compute.device=cpu or auto")
    return torch.device(name)


def check_device(compute: ComputeConfig, device: torch.device) -> None:
    """Check that ``device`` can do what the configuration asks of it.

    Raises:
        ConfigError: mixed precision needs CUDA (or a CPU, slowly); or there are fewer GPUs than asked for.
    """
    if compute.precision in ("16-mixed", "bf16-mixed") and device.type not in ("cuda", "cpu"):
        raise ConfigError(
            f"compute.precision={compute.precision} does not work on {device.type}; use compute.precision=auto"
        )
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, compute.num_devices)
    if compute.num_devices > available:
        raise ConfigError(f"compute.num_devices={compute.num_devices}, but torch sees {available} GPU here; lower it")


def cap_memory(device: torch.device, gigabytes: float | None) -> None:
    """Let this process take no more of a CUDA GPU than ``gigabytes``, as if the GPU were that small."""
    if device.type == "cuda" and gigabytes is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(gigabytes, total))
        log.info("this worker takes at most %g GB of the GPU's %.1f", gigabytes, total / GIGABYTE)


def memory_fraction(gigabytes: float, total: int) -> float:
    """Part of a GPU of ``total`` bytes that a GPU of ``gigabytes`` has; at most 1."""
    return min(1.0, gigabytes * GIGABYTE / total)


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure :func:`peak_memory_gib` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: torch.device) -> float | None:
    """Most memory that torch has reserved on a CUDA GPU since the last reset, GiB; None for other devices."""
    return torch.cuda.max_memory_reserved(device) / GIGABYTE if device.type == "cuda" else None
