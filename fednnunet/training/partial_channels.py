"""Training where a node lacks channels of the network's input: they stay zeros, and some of its own are dropped.

Preprocessed, a missing channel is zeros (:mod:`~fednnunet.datasets.union_channels`); nnU-Net's augmentation adds noise
and brightness to it, so that it is set to 0 again after that. A node's own channels are dropped at random in training,
so that the network learns to do without each (channel dropout, as ModDrop of Neverova et al. 2016, IEEE TPAMI 38(8)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.datasets.union_channels import missing_channels

ALL_CASES = 2**31
"""Stands for fold ``all`` in seeds, which are of numbers."""


class PartialChannels:
    """Sets channels of a batch to 0: those that the node lacks, and in training, at random, some of its own.

    Of each sample, every channel that the node has is dropped with probability ``drop``, independently; where that
    would be all of them, one of them, drawn uniformly, stays. What is dropped depends on ``seed``, the epoch and the
    step alone, so that a run that resumes goes on as it would have.

    Args:
        channels: number of image channels; what a cascade adds behind them stays.
        missing: numbers of those that the node lacks.
        drop: probability in [0, 1).
        seed: numbers that tell this run, fold and process from others.
    """

    def __init__(self, channels: int, missing: Mapping[int, str], drop: float, seed: tuple[int, ...]) -> None:
        self.missing = sorted(missing)
        self.own = [number for number in range(channels) if number not in missing]
        self.drop = drop
        self.seed = seed

    def training(self, batch: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
        """The batch with channels of its ``data`` (B, C, [Z,] Y, X) set to 0 in place."""
        batch = self.validation(batch)
        if self.drop and len(self.own) > 1:
            samples, channels = np.nonzero(self.dropped(len(batch["data"]), epoch, step))
            own = torch.tensor(self.own)[torch.from_numpy(channels)]
            batch["data"][torch.from_numpy(samples), own] = 0
        return batch

    def validation(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the channels that the node lacks set to 0, in place."""
        if self.missing:
            batch["data"][:, self.missing] = 0
        return batch

    def dropped(self, samples: int, epoch: int, step: int) -> np.ndarray:
        """Which of the node's own channels are dropped: booleans (samples, own channels), in no row all."""
        random = np.random.default_rng([*self.seed, epoch, step])
        dropped = random.random((samples, len(self.own))) < self.drop
        kept = random.integers(len(self.own), size=samples)
        everything = dropped.all(axis=1)
        dropped[everything, kept[everything]] = False
        return dropped


def use_partial_channels(trainer: nnUNetTrainer, drop: float, seed: int, rank: int = 0) -> None:
    """Let :class:`~fednnunet.training.module.NNUNetModule` train ``trainer`` with zeros for what the node lacks.

    Nothing changes where the node has all channels and none is dropped.

    Args:
        trainer: after ``initialize()``; its ``dataset.json`` names what the node has acquired, where it lacks any.
        drop: probability with which a channel of a sample is dropped.
        seed: of the node's run.
        rank: of the process, where a node trains on several devices.
    """
    missing = missing_channels(trainer.dataset_json)
    channels = len(trainer.dataset_json["channel_names"])
    if not missing and (not drop or channels == 1):
        return
    fold = ALL_CASES if trainer.fold == "all" else int(trainer.fold)
    trainer.partial_channels = PartialChannels(channels, missing, drop, (seed, fold, rank))


def partial_channels_of(trainer: nnUNetTrainer) -> PartialChannels | None:
    """What :func:`use_partial_channels` has set."""
    return getattr(trainer, "partial_channels", None)
