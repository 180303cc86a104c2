"""What to do where memory, or the disk, was short."""

from __future__ import annotations

import torch

from fednnunet.config.shared import NodeRunConfig
from fednnunet.files import DISK_FULL

CPU_OUT_OF_MEMORY = "can't allocate memory"
"""torch's words; it raises a plain RuntimeError."""
AUGMENTATION_DIED = "background workers are no longer alive"
"""batchgenerators' words."""
CHECKPOINT_NOT_WRITTEN = ("PytorchStreamWriter failed writing", "iostream error", "inline_container.cc")
"""torch's words for a checkpoint that the disk did not take; it hides the number of the error."""


def explain_out_of_memory(error: Exception, node: str, config: NodeRunConfig) -> str | None:
    """What to lower where ``error`` says that memory was short; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        target = config.gpu_memory_of(node)
        plans = f"plans for {target:g} GB" if target is not None else f"what {config.model.planner} plans for"
        return (
            f"out of GPU memory with {plans}; lower the target: +gpu_memory.per_node.{node}=…, or gpu_memory.gb=… "
            "for all nodes (strategy=ffe needs the same for all)"
        )
    if isinstance(error, MemoryError) or CPU_OUT_OF_MEMORY in str(error):
        return (
            "out of main memory; lower federation.max_parallel_nodes, compute.preprocessing_workers or "
            f"+gpu_memory.per_node.{node}, which decides the size of patch and batch"
        )
    if AUGMENTATION_DIED in str(error):
        return (
            "a background process for augmentation died, mostly for lack of memory; lower compute.augmentation_workers"
        )
    return None


def lack_of_disk(error: BaseException | None) -> bool:
    """Whether ``error`` says that the disk is full, or was caused by one that does."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    by_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in CHECKPOINT_NOT_WRITTEN)
    return full or by_torch or lack_of_disk(error.__cause__ or error.__context__)
