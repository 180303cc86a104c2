"""Lightning's fit of a fold, which can be set aside between two rounds and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.config.groups import ComputeConfig
from fednnunet.training.callback import FederatedCallback, Rounds
from fednnunet.training.data import NNUNetDataModule
from fednnunet.training.lightning_trainer import build_lightning_trainer
from fednnunet.training.module import NNUNetModule


class NextStep(Enum):
    """What a request means for a fit that waits between two rounds."""

    START = auto()
    """The next round of the fold: train it in this fit."""
    STOP = auto()
    """The fit is over; the request is answered after its end."""
    SET_ASIDE = auto()
    """Another node needs the process: the fit goes on with the next round."""
    IGNORE = auto()
    """Nothing: the request is answered while the fit waits on."""


class FoldFit:
    """The remaining epochs of a fold.

    One Lightning trainer runs all of them, in one fit or in several: network, optimizer and loaders are nnU-Net's, so a
    fit that ends after an epoch is continued by the next one as if it had not ended.

    Args:
        trainer: after its ``on_train_start()``.
        rounds: the node's side of the exchange.
        compute: how the node computes.
        root: Lightning's default folder.
        step: takes the place of the trainer's ``train_step``, as one that hides single cases.
    """

    def __init__(
        self,
        trainer: nnUNetTrainer,
        rounds: Rounds,
        compute: ComputeConfig,
        root: Path,
        step: Callable[[Any], dict[str, Any]] | None,
    ) -> None:
        self._module = NNUNetModule(trainer, step)
        self._data = NNUNetDataModule(trainer, numbers_only=step is not None)
        self._lightning_trainer = build_lightning_trainer(self._module, compute, [FederatedCallback(rounds)], root)

    def run(self) -> None:
        """Train until the rounds are over, or the fit is to be set aside."""
        self._lightning_trainer.should_stop = False
        self._lightning_trainer.fit(self._module, datamodule=self._data)

    def free_gradients(self) -> None:
        """Free what the next step begins without, unless the trainer has a training step of its own."""
        if self._module.automatic_optimization:
            self._module.nnunet.optimizer.zero_grad(set_to_none=True)


def tensor_bytes(trainer: nnUNetTrainer | None) -> int:
    """Bytes of what a trainer keeps between two steps: network, gradients, state of the optimizer, and a teacher."""
    if trainer is None:
        return 0
    tensors = [*trainer.network.parameters(), *trainer.network.buffers()]
    if isinstance(trainer.loss, nn.Module):
        tensors += [*trainer.loss.parameters(), *trainer.loss.buffers()]
    tensors += [one.grad for one in trainer.network.parameters() if one.grad is not None]
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors += [value for value in states if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
