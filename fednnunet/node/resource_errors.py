"""Errors that say that memory or the disk was full, or that it cannot be written, and what to do about them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch

from fednnunet.files import DISK_FULL, NOT_WRITABLE
from fednnunet.node.settings import NodeSettings

CPU_OUT_OF_MEMORY = "can't allocate memory"
"""Message of torch, which raises a plain RuntimeError."""
AUGMENTATION_DIED = "background workers are no longer alive"
"""Message of batchgenerators."""
CHECKPOINT_NOT_WRITTEN = ("PytorchStreamWriter failed writing", "iostream error", "inline_container.cc")
"""Messages of torch where a checkpoint could not be written; it hides the error number."""
REASON = "strerror: "
"""Before the system's reason in a message of torch; where there is none, the disk was full."""


class CacheLostError(Exception):
    """Preprocessed images were removed while they were in use; they can be made again."""

    def __init__(self) -> None:
        super().__init__("preprocessed images were removed from its cache; they are made again when the run goes on")


def explain_out_of_memory(error: Exception, settings: NodeSettings) -> str | None:
    """Which setting to lower, if ``error`` says that memory ran out; None for any other error.

    A node on a machine of its own has settings of its own in ``node.yaml``.
    """
    node, config = settings.name, settings.config
    if isinstance(error, torch.OutOfMemoryError):
        target = config.gpu_memory_of(node)
        plans = f"plans for {target:g} GB" if target is not None else f"what {config.model.planner} plans for"
        lower = f"+gpu_memory.per_node.{node}=…" if settings.same_machine else "gpu_memory.gb in its node.yaml"
        more = "federation.workers=1, " if settings.same_machine else ""
        more = ("gpu_memory.cap=false, " if config.gpu_memory.cap and target is not None else "") + more
        return (
            f"out of GPU memory with {plans}; continue with more of it ({more}other programs off the GPU), or start a "
            f"new run with a lower target: {lower}, or gpu_memory.gb=… for all nodes (strategy=ffe needs the same for "
            "all)"
        )
    if isinstance(error, MemoryError) or CPU_OUT_OF_MEMORY in str(error):
        if settings.same_machine:
            lower = f"federation.workers, compute.preprocessing_workers or +gpu_memory.per_node.{node}"
        else:
            lower = "compute.preprocessing_workers or gpu_memory.gb in its node.yaml"
        return f"out of main memory; lower {lower}; the last decides the size of patch and batch"
    if AUGMENTATION_DIED in str(error):
        where = "" if settings.same_machine else " in its node.yaml"
        return (
            "a background process for augmentation died, usually for lack of memory; lower "
            f"compute.augmentation_workers{where}"
        )
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether ``error`` says that the disk is full, or a quota used up, or was caused by an error that does."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    by_torch = _torch_reason(error)
    full |= by_torch in ("", *map(os.strerror, DISK_FULL))
    return full or is_disk_full(error.__cause__ or error.__context__)


def not_writable(error: BaseException | None, folder: Path) -> str | None:
    """Why what is in ``folder`` cannot be written, if ``error`` or its cause says so; None for any other error."""
    if error is None:
        return None
    reason = _torch_reason(error)
    if reason in [os.strerror(number) for number in NOT_WRITABLE]:
        return reason
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        in_folder = error.filename is not None and Path(str(error.filename)).is_relative_to(folder)
        if error.errno == errno.EROFS or in_folder:
            return error.strerror
    return not_writable(error.__cause__ or error.__context__, folder)


def _torch_reason(error: BaseException) -> str | None:
    """Why torch could not write a checkpoint; empty where it does not say, None for any other error."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not any(message in text for message in CHECKPOINT_NOT_WRITTEN):
        return None
    return next(iter(text.partition(REASON)[2].splitlines()), "").strip()
