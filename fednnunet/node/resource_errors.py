"""Errors that say that memory or the disk was full, and what to do about them."""

from __future__ import annotations

import torch

from fednnunet.files import DISK_FULL
from fednnunet.node.settings import NodeSettings

CPU_OUT_OF_MEMORY = "can't allocate memory"
"""Message of torch, which raises a plain RuntimeError."""
AUGMENTATION_DIED = "background workers are no longer alive"
"""Message of batchgenerators."""
CHECKPOINT_NOT_WRITTEN = ("PytorchStreamWriter failed writing", "iostream error", "inline_container.cc")
"""Messages of torch where a checkpoint did not fit on the disk; it hides the error number."""


def explain_out_of_memory(error: Exception, settings: NodeSettings) -> str | None:
    """Which setting to lower, if ``error`` says that memory ran out; None for any other error.

    A node on a machine of its own has settings of its own in ``node.yaml``.
    """
    node, config = settings.name, settings.config
    if isinstance(error, torch.OutOfMemoryError):
        target = config.gpu_memory_of(node)
        plans = f"plans for {target:g} GB" if target is not None else f"what {config.model.planner} plans for"
        lower = f"+gpu_memory.per_node.{node}=…" if settings.same_machine else "gpu_memory.gb in its node.yaml"
        return (
            f"out of GPU memory with {plans}; lower the target: {lower}, or gpu_memory.gb=… for all nodes "
            "(strategy=ffe needs the same for all)"
        )
    if isinstance(error, MemoryError) or CPU_OUT_OF_MEMORY in str(error):
        if settings.same_machine:
            lower = f"federation.max_parallel_nodes, compute.preprocessing_workers or +gpu_memory.per_node.{node}"
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
    """Whether ``error`` says that the disk is full, or was caused by an error that does."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    by_torch = isinstance(error, RuntimeError) and any(message in str(error) for message in CHECKPOINT_NOT_WRITTEN)
    return full or by_torch or is_disk_full(error.__cause__ or error.__context__)
