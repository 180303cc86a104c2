"""nnU-Net's augmented batches, handed to Lightning epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class EpochLoader:
    """``length`` batches per epoch of nnU-Net's endless generator.

    A plain iterable: a torch ``DataLoader`` around the generator would draw its base seed from the global
    random state and so change every augmentation after it.
    """

    def __init__(self, batches: Iterator[dict[str, Any]], length: int) -> None:
        self.batches = batches
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.length):
            yield next(self.batches)


class NNUNetDataModule(L.LightningDataModule):
    """The trainer's own loaders, after its ``on_train_start()``.

    Args:
        nnunet: the trainer.
        numbers_only: a training step gets its number within the epoch instead of a batch, and draws its own.
    """

    def __init__(self, nnunet: nnUNetTrainer, numbers_only: bool = False) -> None:
        super().__init__()
        self.nnunet = nnunet
        self.numbers_only = numbers_only

    def train_dataloader(self) -> EpochLoader | range:
        if self.numbers_only:
            return range(self.nnunet.num_iterations_per_epoch)
        return EpochLoader(self.nnunet.dataloader_train, self.nnunet.num_iterations_per_epoch)

    def val_dataloader(self) -> EpochLoader:
        return EpochLoader(self.nnunet.dataloader_val, self.nnunet.num_val_iterations_per_epoch)
