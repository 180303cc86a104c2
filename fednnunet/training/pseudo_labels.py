"""What the federation's network sees of labels that a node has not annotated, taught to the node's own.

Where the node has annotated nothing, its marginal loss (:mod:`~fednnunet.training.marginal_loss`) says of a voxel only
that it is background *or* something unannotated. The network that the node receives at the start of a round says which:
it segments training cases, and its choice among background and unannotated classes is the voxel's label from then on
(pseudo-labels, Lee 2013, ICML workshop on challenges in representation learning). ConDistFL (Wang et al. 2023,
https://arxiv.org/abs/2308.04070) has it pass over every batch instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ConfigError
from fednnunet.evaluation.predict import NotFiniteError
from fednnunet.evaluation.sliding_window import SlidingWindow, Tiles
from fednnunet.training.cascade import preprocessed_cases, preprocessed_input
from fednnunet.training.completed_cases import PseudoLabelFiles, complete_cases
from fednnunet.training.marginal_loss import MarginalLoss
from fednnunet.training.network_state import unwrap

log = logging.getLogger(__name__)

FOLDER = "pseudo_labels"
"""In the folder of the fold's checkpoints."""
START = 0.15
"""Fraction of the epochs after which cases are labelled: the first networks know little."""
MARGIN = 0.15
"""Fraction of a patch by which an image may be larger before it takes a second one."""
PASSES_OF_A_STEP = 3
"""Forward passes that take as long as a training step: the backward pass takes about two."""


class PseudoLabels:
    """Labels the training cases of a node, in turn, so that it takes a fixed share of the training's time.

    Which cases an epoch labels follows from its number alone, so that a run that resumes goes on as it would have: it
    may segment ``share`` of the patches whose forward passes take as long as the training steps of the epoch, and what
    is left over is for the next. A case that has not had its turn is trained on without pseudo-labels. What is outside
    of an image, and gets into patches at its border and by augmentation, is known to be background.

    The weight of pseudo-labels grows from 0 to 1 over the epochs, as later networks know more. A voxel gets none where
    somebody has annotated it, nor where the network sees one of the node's own structures: there, it is known to be
    wrong.

    Args:
        trainer: after ``initialize()``, before its loaders are built.
        loss: the trainer's.
        share: of the computation of training, in (0, 1].

    Attributes:
        files: what has been labelled.
    """

    def __init__(self, trainer: nnUNetTrainer, loss: MarginalLoss, share: float) -> None:
        self.files = PseudoLabelFiles(Path(trainer.output_folder) / FOLDER)
        self._trainer = trainer
        self._loss = loss
        self._share = share
        self._is_read = False
        self._next_epoch: int | None = None
        trainer.get_tr_and_val_datasets = self._completing(trainer.get_tr_and_val_datasets)

    def _completing(self, get_datasets: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
        """The trainer's ``get_tr_and_val_datasets``: the first is completed, the other stays as it was drawn."""

        def get_tr_and_val_datasets() -> tuple[Any, Any]:
            training, validation = get_datasets()
            complete_cases(training, self.files, self._loss.unknown)
            self._is_read = True
            return training, validation

        return get_tr_and_val_datasets

    def update(self) -> None:
        """A round begins: label the cases whose turn it is with the trainer's network, which the node has received.

        Raises:
            ConfigError: the trainer loads its cases in a way of its own.
            NotFiniteError: the network's output is not finite.
        """
        trainer = self._trainer
        epoch, first = trainer.current_epoch, self._first_epoch
        self._loss.pseudo_weight = epoch / trainer.num_epochs
        if trainer.local_rank:  # the node's other processes read what this one writes
            return
        if not self._is_read:
            raise ConfigError(
                f"task.pseudo_labels: trainer.class={type(trainer).__name__} does not load its cases by nnU-Net's "
                "get_tr_and_val_datasets; set it to 0"
            )
        if self._next_epoch is None:
            last = self.files.remove_from(epoch)
            self._next_epoch = first if last is None else last + 1
        if epoch >= first:
            self._label(self._turns.cases(self._next_epoch - first, epoch + 1 - first), epoch)
            self._next_epoch = epoch + 1

    @property
    def turns_in_all_epochs(self) -> float:
        """How often a training case is labelled in all epochs, on average."""
        epochs = self._trainer.num_epochs - self._first_epoch
        return self._turns.number(epochs) / len(self._dataset.identifiers)

    @property
    def _first_epoch(self) -> int:
        return max(1, int(START * self._trainer.num_epochs))

    def label_all(self) -> None:
        """Label all cases with the trainer's network as it is now, for a training with their full weight throughout."""
        self._loss.pseudo_weight = 1.0
        self.files.remove()
        self._label(self._dataset.identifiers, 0)

    def learn_from(self, other: PseudoLabels) -> None:
        """Use what another training of the same cases has labelled; called before this one's loaders are built."""
        self.files = other.files
        self._loss.pseudo_weight = other._loss.pseudo_weight

    @cached_property
    def _dataset(self) -> nnUNetBaseDataset:
        """The training cases, as preprocessed."""
        return preprocessed_cases(self._trainer, self._trainer.do_split()[0])

    @cached_property
    def _turns(self) -> Turns:
        """Whose turn is when, by the patches that cover each case and those that an epoch has time for."""
        patch = self._trainer.configuration_manager.patch_size
        shapes = {case: self._dataset.load_case(case)[0].shape[1:] for case in self._dataset.identifiers}
        seen = {case: [part.stop - part.start for part in segmented(shape, patch)] for case, shape in shapes.items()}
        patches = {case: len(Tiles.of(shape, patch).places) for case, shape in seen.items()}
        trained_on = self._trainer.num_iterations_per_epoch * self._trainer.batch_size
        return Turns(patches, float(self._share * PASSES_OF_A_STEP * trained_on))

    def _label(self, cases: Sequence[str], epoch: int) -> None:
        """Segment cases, and write what is taught of them."""
        if not cases:
            return
        trainer = self._trainer
        patch, heads = trainer.configuration_manager.patch_size, trainer.label_manager.num_segmentation_heads
        window, network = SlidingWindow(patch, heads, None, trainer.device), unwrap(trainer.network)
        read: list[tuple[str, tuple[int, ...], tuple[slice, ...]]] = []

        def images() -> Iterator[torch.Tensor]:
            for case in cases:
                image = preprocessed_input(trainer, self._dataset, case)[0]
                read.append((case, image.shape[1:], segmented(image.shape[1:], patch)))
                yield torch.from_numpy(image)[:, *read[-1][2]]

        was_training = network.training
        network.eval()
        trainer.set_deep_supervision_enabled(False)
        try:
            for number, logits in enumerate(window.batched_logits(network, images(), trainer.batch_size)):
                if not torch.isfinite(logits).all():
                    raise NotFiniteError
                case, shape, part = read[number]
                labels = self._loss.pseudo_labels(logits).numpy()
                values = np.full((1, *shape), self._loss.unknown, labels.dtype)
                values[0][part] = labels
                self.files.write(case, epoch, values)
        finally:
            trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
            network.train(was_training)
        log.info("pseudo-labels of %d of %d training cases are new", len(cases), len(self._dataset.identifiers))


def segmented(shape: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    """The part of an image (Z, Y, X) that is labelled: all but an edge that would take as long as all else.

    nnU-Net's patches are as large as the median image where that fits into memory: every other image is larger by
    little, and takes several patches where one shows nearly all of it.
    """
    sizes = [*shape[: len(shape) - len(patch)], *patch]
    lacking = [
        whole - size if size < whole <= size * (1 + MARGIN) else 0 for whole, size in zip(shape, sizes, strict=True)
    ]
    return tuple(slice(less // 2, whole - (less - less // 2)) for less, whole in zip(lacking, shape, strict=True))


class Turns:
    """Which cases are labelled when: one after another, again and again, each when there is time for all its patches.

    Args:
        patches: number of patches of each case.
        each: patches that may be segmented in an epoch.
    """

    def __init__(self, patches: dict[str, int], each: float) -> None:
        self._cases = list(patches)
        self._ends = np.cumsum(list(patches.values()))
        self._each = each

    def cases(self, begin: int, end: int) -> list[str]:
        """Cases whose turn it is in these epochs, counted from the first, each once."""
        until = self.number(end)
        turns = range(max(self.number(begin), until - len(self._cases)), until)
        return [self._cases[turn % len(self._cases)] for turn in turns]

    def number(self, epochs: int) -> int:
        """Turns that so many epochs have time for."""
        whole, rest = divmod(epochs * self._each, float(self._ends[-1]))
        return int(whole) * len(self._cases) + int(np.searchsorted(self._ends, rest, side="right"))


def remove_pseudo_labels(trainer: nnUNetTrainer) -> None:
    """Remove the files of a training that is over."""
    pseudo_labels = pseudo_labels_of(trainer)
    if pseudo_labels is not None:
        pseudo_labels.files.remove()


def pseudo_labels_of(trainer: nnUNetTrainer) -> PseudoLabels | None:
    """What completes the label maps that ``trainer`` trains on, if anything."""
    return getattr(trainer, "pseudo_labels", None)
