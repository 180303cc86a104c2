"""GPUs of this machine, found without importing torch."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fednnunet.config.groups import GpuId
from fednnunet.errors import ConfigError

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
LIST = ("nvidia-smi", "-L")
MIG = re.compile(r"^\s+MIG (?:\S+\.)?(\d+)gb\S* .*\(UUID: (MIG-[^)]+)\)")
"""A part of a GPU in the output of ``nvidia-smi -L``: its memory in GB, and its UUID."""
SECONDS = 30


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG).

    Attributes:
        uuid: what names it in ``CUDA_VISIBLE_DEVICES`` of any process, in whatever order CUDA counts.
        number: its number in ``nvidia-smi``; None for a part of a GPU.
        memory_gb: its memory, GB.
    """

    uuid: str
    number: int | None
    memory_gb: float

    def __str__(self) -> str:
        return self.uuid if self.number is None else str(self.number)


def find_gpus() -> list[Gpu]:
    """GPUs that this process may use, in the order of ``CUDA_VISIBLE_DEVICES``, else of their numbers.

    A GPU that is divided (MIG) stands for its parts.
    """
    try:
        table, listing = (_output(command) for command in (QUERY, LIST))
    except (OSError, subprocess.SubprocessError):  # no driver
        return []
    return visible(parse_gpus(table, listing), os.environ)


@functools.cache  # the driver may take seconds to start, and GPUs stay what they are
def _output(command: tuple[str, ...]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout


def parse_gpus(table: str, listing: str) -> list[Gpu]:
    """GPUs in the outputs of ``nvidia-smi --query-gpu=index,uuid,memory.total`` (CSV, MiB) and ``nvidia-smi -L``."""
    parts: dict[str, list[Gpu]] = {}
    current = ""
    for line in listing.splitlines():
        if match := re.match(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)", line):
            current = match[1]
        elif match := MIG.match(line):
            parts.setdefault(current, []).append(Gpu(match[2], None, float(match[1])))
    gpus = []
    for line in filter(None, map(str.strip, table.splitlines())):
        number, uuid, memory = (field.strip() for field in line.split(","))
        gpus += parts.get(uuid) or [Gpu(uuid, int(number), float(memory) / 1024)]
    return gpus


def visible(gpus: Iterable[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Those of ``gpus`` that ``CUDA_VISIBLE_DEVICES`` names; all where it is not set.

    As CUDA reads it (CUDA C++ Programming Guide, environment variables): numbers, or UUIDs that may be cut short; what
    follows an entry that names no GPU does not count, so that an empty text, -1 and NoDevFiles hide all.

    Raises:
        ConfigError: numbers choose among unlike GPUs, and CUDA counts these from the fastest, not as nvidia-smi does.
    """
    gpus = list(gpus)
    if VISIBLE not in environment:
        return gpus
    numbers = any(entry.strip().isdigit() for entry in environment[VISIBLE].split(","))
    if numbers and len({gpu.memory_gb for gpu in gpus}) > 1 and environment.get(ORDER) != "PCI_BUS_ID":
        raise ConfigError(
            f"{VISIBLE}={environment[VISIBLE]}: the GPUs here are unlike, and CUDA does not count them as nvidia-smi "
            f"does; set {ORDER}=PCI_BUS_ID, or name GPUs by UUID (nvidia-smi -L)"
        )
    found: list[Gpu] = []
    for entry in environment[VISIBLE].split(","):
        gpu = _named(gpus, entry.strip())
        if gpu is None or gpu in found:
            break
        found.append(gpu)
    return found


def _named(gpus: Iterable[Gpu], entry: str) -> Gpu | None:
    if entry.isdigit():
        return next((gpu for gpu in gpus if gpu.number == int(entry)), None)
    named = [gpu for gpu in gpus if entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry)]
    return named[0] if len(named) == 1 else None


def chosen(gpus: Sequence[Gpu], id_: GpuId) -> Gpu:
    """The one of ``gpus`` that the configuration names.

    Raises:
        ConfigError: it is not visible here, or more than one is meant.
    """
    gpu = _named(gpus, str(id_))
    if gpu is None:
        seen = ", ".join(map(str, gpus)) or "none"
        raise ConfigError(f"compute.gpus: GPU {id_} is not visible here; visible: {seen} (nvidia-smi -L, {VISIBLE})")
    return gpu


def use_gpus(uuids: Sequence[str] | None) -> None:
    """Let CUDA see these GPUs only, in this process and those that it starts; None changes nothing.

    CUDA reads the variable when it is first used.
    """
    if uuids is not None:
        os.environ[VISIBLE] = ",".join(uuids)
