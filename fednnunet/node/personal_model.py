"""A model of the node's own: the federation's averages fine-tuned here, or Ditto's network beside the shared one.

It has a trainer of its own, with optimizer, schedule, loaders and generators of random numbers, so that the shared
network is trained as if it were not there. It never leaves the node; its nnU-Net results folder lies beside that of the
shared one.

Ditto (Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", eq. 1 and algorithm 1):
beside the shared network, node *k* trains v_k to lower h_k(v_k; w) = F_k(v_k) + lambda/2 |v_k - w|^2, with its own loss
F_k and the averages w that the round began with.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.groups import TrainerConfig
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold, PersonalTraining
from fednnunet.node import prepare
from fednnunet.node.describe import NodeDataset
from fednnunet.node.distributed import Ranks
from fednnunet.node.fold_fit import FoldFit
from fednnunet.node.settings import NodeSettings
from fednnunet.privacy.secure_sum import digest_of
from fednnunet.run_files import PERSONAL_RESULTS
from fednnunet.training.checkpoint import (
    checkpoint_of,
    end_loaders,
    intact_rounds,
    load_round,
    random_state,
    read_note,
    restore_random_state,
    save_final,
    save_round,
)
from fednnunet.training.epochs import skip_epochs
from fednnunet.training.module import NNUNetModule, check_takes_terms
from fednnunet.training.network_state import as_tensors, layer_shapes, load_state, state_arrays
from fednnunet.training.pseudo_labels import PseudoLabels, pseudo_labels_of, remove_pseudo_labels

log = logging.getLogger(__name__)

DEFAULT_FRACTION = 0.1
"""Initial learning rate of fine-tuning, as a fraction of that of training."""


class PersonalModel:
    """A network that a node trains for itself, epoch by epoch, between those of the shared one.

    Implements :class:`~fednnunet.training.callback.Rounds`: each fit is one epoch.

    Args:
        trainer: has just been built, and the global generators are as that left them.
        settings: settings of the node.
        tie: Ditto's lambda, the weight with which it is pulled towards averages.

    Attributes:
        trainer: its trainer.
    """

    def __init__(self, trainer: nnUNetTrainer, settings: NodeSettings, tie: float) -> None:
        self.trainer = trainer
        self._settings = settings
        self._tie = tie
        self._random_state = random_state()
        self._fit: FoldFit | None = None
        self._is_resumed = False
        self._averages: Mapping[str, np.ndarray] = {}

    @property
    def folder(self) -> Path:
        """Where its checkpoints of the fold lie."""
        return Path(self.trainer.output_folder)

    def train_epoch(
        self, epoch: int, averages: Mapping[str, np.ndarray], taught_with: PseudoLabels | None = None
    ) -> None:
        """Train one epoch.

        Args:
            epoch: its number, from 0; earlier ones that it was not in are skipped.
            averages: layers that it is pulled towards; others are trained freely.
            taught_with: what teaches the shared network the labels that the node has not annotated; a network that is
                pulled towards nothing is not taught either, as a node that trains alone.
        """
        skip_epochs(self.trainer, epoch)
        pseudo_labels = pseudo_labels_of(self.trainer)
        if pseudo_labels is not None and taught_with is not None and self._tie:
            pseudo_labels.learn_from(taught_with)
        self._averages = averages
        with self._own_generators():
            if self._fit is None:
                state = random_state()
                self.trainer.on_train_start()
                if self._is_resumed:
                    restore_random_state(state)
                self._fit = FoldFit(self.trainer, self, self._settings.config.compute, self._settings.folder, None)
            self._fit.run()
        self._fit.free_gradients()
        self._averages = {}  # they are in memory that is shared with the process that received them

    def start_epoch(self, module: NNUNetModule) -> None:
        """Pull the network towards the averages from now on."""
        module.set_proximal_term(as_tensors(self._averages), self._tie)

    def end_epoch(self, module: NNUNetModule) -> bool:
        """Give the process back to the shared network; averages, which are copied, are kept no longer."""
        module.set_proximal_term({}, 0.0)
        return False

    def save(self, number: int, **note: Any) -> Path:
        """Write a checkpoint after round or epoch ``number``, with what to note of it; returns it."""
        with self._own_generators():
            return save_round(self.trainer, {"server_round": number, **note}, {})

    def load(self, number: int) -> None:
        """Go on from the checkpoint after round or epoch ``number``."""
        self._random_state = load_round(self.trainer, number)["random"]
        self._is_resumed = True

    def reseed(self, seed: int) -> None:
        """Draw from now on by ``seed`` plus one: with ``seed``, training has begun, and would with the same patches."""
        with self._own_generators():
            L.seed_everything((seed + 1) % 2**32, verbose=False)

    def label_all(self) -> None:
        """Let the network as it is now teach, in all epochs and at full weight, what the node has not annotated."""
        pseudo_labels = pseudo_labels_of(self.trainer)
        if pseudo_labels is not None:
            pseudo_labels.label_all()

    def started_from(self, number: int, start: Mapping[str, Any]) -> bool:
        """Whether the checkpoint after epoch ``number`` notes this."""
        note = read_note(checkpoint_of(self.trainer, number))
        return note is not None and start.items() <= note["reply"].items()

    def finish(self) -> None:
        """Write nnU-Net's final checkpoint."""
        self._fit = None
        skip_epochs(self.trainer, self.trainer.num_epochs)
        save_final(self.trainer)
        remove_pseudo_labels(self.trainer)

    def close(self) -> None:
        """End what runs beside the process."""
        end_loaders(self.trainer)

    @contextlib.contextmanager
    def _own_generators(self) -> Iterator[None]:
        """The global generators of random numbers as this network left them; then as they were."""
        outside = random_state()
        restore_random_state(self._random_state)
        try:
            yield
        finally:
            self._random_state = random_state()
            restore_random_state(outside)


@dataclass(frozen=True)
class PersonalModels:
    """Builds the node's own models, of the same data, plans and settings as the shared ones.

    Args:
        asked: how the node comes to a model of its own.
        settings: settings of the node.
        dataset: its data.
        plans: plans of its network.
        device: device to compute on.
        ranks: the node's other processes: none.

    Raises:
        ConfigError: the node trains on several devices.
    """

    asked: PersonalTraining
    settings: NodeSettings
    dataset: NodeDataset
    plans: dict[str, Any]
    device: torch.device
    ranks: Ranks

    def __post_init__(self) -> None:
        if self.ranks.size > 1:
            key = "fine_tune_epochs" if self.asked.tie is None else "ditto_lambda"
            raise ConfigError(
                f"strategy.{key}: a model of the node's own is trained on one device, and compute.num_devices="
                f"{self.ranks.size}; set it to 1"
            )

    def beside(self, fold: Fold) -> PersonalModel | None:
        """Ditto's network, from the node's own first values as if it trained alone; None where there is none.

        Raises:
            ConfigError: the trainer has its own training step, to which no tie can be added.
        """
        if self.asked.tie is None:
            return None
        model = self._build(fold, self.settings.config.trainer)
        if self.asked.tie:
            check_takes_terms(model.trainer, "strategy.ditto_lambda")
        model.trainer.network.cpu()  # where Lightning leaves it after each epoch: the GPU is for what trains
        return model

    def fine_tuned(self, shared: nnUNetTrainer) -> PersonalModel:
        """The final network of ``shared``, trained on alone; goes on from the last sound checkpoint of that.

        With partial labels it is taught by the network that it starts from, so that it keeps what it knows of labels
        which the node has not annotated. On which patches depends on the node's seed, and on nothing that was before.
        """
        rate = self.asked.learning_rate or DEFAULT_FRACTION * shared.initial_lr
        changed = {"epochs": self.asked.fine_tune_epochs, "initial_lr": rate}
        model = self._build(shared.fold, self.settings.config.trainer.model_copy(update=changed))
        weights = state_arrays(shared.network, layer_shapes(shared.network))
        start = {"start": digest_of(list(weights.values())), "learning_rate": rate}
        load_state(model.trainer.network, weights)
        model.label_all()
        model.reseed(self.settings.seed)
        finished = [number for number in intact_rounds(model.folder) if model.started_from(number, start)]
        if finished:
            log.info("fine-tuning goes on after epoch %d", max(finished))
            model.load(max(finished))
        try:
            for epoch in range(model.trainer.current_epoch, model.trainer.num_epochs):
                model.train_epoch(epoch, {})
                model.save(epoch + 1, **start)
        except BaseException:
            model.close()
            raise
        return model

    def _build(self, fold: Fold, trainer: TrainerConfig) -> PersonalModel:
        config = self.settings.config.model_copy(update={"trainer": trainer})
        outside = random_state()
        with _results_in(self.settings.folder / PERSONAL_RESULTS):
            settings = replace(self.settings, config=config)
            built = prepare.build_fold_trainer(fold, self.dataset, self.plans, settings, self.device, self.ranks)
        model = PersonalModel(built, settings, self.asked.tie or 0.0)
        restore_random_state(outside)
        return model


@contextlib.contextmanager
def _results_in(folder: Path) -> Iterator[None]:
    """Let nnU-Net's trainers that are built meanwhile write into ``folder``."""
    variable = "nnUNet_results"
    before = os.environ[variable]
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        os.environ[variable] = before
