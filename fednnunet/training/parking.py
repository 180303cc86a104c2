"""A waiting node's tensors in main memory, so that another node has the GPU to itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn


class ParkedTrainer:
    """What a trainer keeps between two steps, moved from its device to main memory; gradients are freed.

    Network, loss, state of the optimizer and of the gradient scaler stay the objects that they are: only the memory
    behind each tensor changes, so that optimizer, compiled network and Lightning's module still refer to it. Where
    Lightning has ended a fit, it has moved most of them already, and moves them back itself.

    Args:
        trainer: waits between two rounds, or before its first.

    Attributes:
        num_bytes: bytes that have been moved.
    """

    def __init__(self, trainer: nnUNetTrainer) -> None:
        for parameter in trainer.network.parameters():
            parameter.grad = None
        self._homes = [(tensor, tensor.device) for tensor in _tensors(trainer) if tensor.device == trainer.device]
        self.num_bytes = sum(tensor.numel() * tensor.element_size() for tensor, _ in self._homes)
        for tensor, home in self._homes:
            tensor.data = _in_main_memory(tensor.data, pinned=home.type == "cuda")

    def restore(self) -> None:
        """Move the tensors back."""
        for tensor, home in self._homes:
            tensor.data = tensor.data.to(home)


def _in_main_memory(tensor: torch.Tensor, pinned: bool) -> torch.Tensor:
    """A copy; pinned memory makes the way back faster."""
    return torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor)


def _tensors(trainer: nnUNetTrainer) -> Iterator[torch.Tensor]:
    """Parameters and buffers of network and loss, tensors of the optimizer's state and of the gradient scaler."""
    for module in (trainer.network, trainer.loss):
        if isinstance(module, nn.Module):
            yield from module.parameters()
            yield from module.buffers()
    for state in trainer.optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))
    if trainer.grad_scaler is not None:
        yield from (value for value in vars(trainer.grad_scaler).values() if torch.is_tensor(value))
