"""Training where a node has annotated only some of the labels: what it has not annotated is unknown, not background.

The network has a class for every label of the union. At a node, the classes that it has not annotated and the
background are one class, whose probability is the sum of theirs; nnU-Net's own loss is computed on these merged classes
(:mod:`~fednnunet.training.marginal_loss`).

What a node has annotated is in its ``dataset.json`` under ``annotated``: names of labels, or, where cases of several
centres are pooled, such names by centre (:mod:`~fednnunet.datasets.pooled`). Without it nothing here takes effect.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.config.task import RESERVED, TaskConfig
from fednnunet.datasets.label_names import ANNOTATED
from fednnunet.datasets.pooled import centre_of
from fednnunet.errors import ConfigError, DataError
from fednnunet.listing import join_all, join_first
from fednnunet.training.epochs import FIRST_MOVING_AVERAGE
from fednnunet.training.marginal_loss import MarginalLoss, PooledMarginalLoss, cases_of
from fednnunet.training.pseudo_labels import PseudoLabels

MOST_NAMES = 12
"""Labels or cases that an error names."""
COUNTS = ("tp_hard", "fp_hard", "fn_hard")
"""What ``nnUNetTrainer.validation_step`` counts for each foreground class: arrays (classes,)."""
Step = Callable[[dict[str, Any]], dict[str, Any]]


def use_partial_labels(trainer: nnUNetTrainer, task: TaskConfig) -> None:
    """Let ``trainer`` train and validate on what ``annotated`` of its ``dataset.json`` names, if it has that key.

    Its loss becomes a marginal one. The pseudo-Dice leaves out what is not annotated, where every voxel predicted would
    count as wrong; its moving average stays as it is after an epoch without any annotated voxel.

    Args:
        trainer: after ``initialize()``; with annotations by centre, its data are preprocessed.
        task: its ``exclusion`` (:class:`MarginalLoss`) and ``pseudo_labels`` (:class:`PseudoLabels`) are used; there
            are no pseudo-labels where annotations are by centre, as nothing is received there.

    Raises:
        ConfigError: ``annotated`` names no label of the task, or none at all; the task has regions; or the trainer's
            loss or steps cannot be changed.
        DataError: ``annotated`` leaves out the centre of a case of the fold.
    """
    named = trainer.dataset_json.get(ANNOTATED)
    if named is None:
        return
    is_pooled = isinstance(named, dict)
    sets = {centre: _classes_of(trainer, names) for centre, names in (named if is_pooled else {"": named}).items()}
    num_classes = trainer.label_manager.num_segmentation_heads
    if is_pooled:
        sets = _sets_of_cases(trainer, sets)
    if all(len(one) == len(trainer.label_manager.foreground_labels) for one in sets.values()):
        return
    _check_loss(trainer, is_pooled)
    rest = (num_classes, trainer.label_manager.ignore_label, task.exclusion)
    is_deep = isinstance(trainer.loss, DeepSupervisionWrapper)
    inner = trainer.loss.loss if is_deep else trainer.loss
    loss = PooledMarginalLoss(inner, sets, *rest) if is_pooled else MarginalLoss(inner, sets[""], *rest)
    if is_deep:
        trainer.loss.loss = loss
    else:
        trainer.loss = loss
    if task.pseudo_labels and isinstance(loss, MarginalLoss):
        trainer.pseudo_labels = PseudoLabels(trainer, loss, task.pseudo_labels)
    if type(trainer).train_step is not nnUNetTrainer.train_step:
        trainer.train_step = _own_step(trainer)
    trainer.validation_step = _validation_step(trainer, loss)
    trainer.on_validation_epoch_end = _end_of_validation(trainer)


def _classes_of(trainer: nnUNetTrainer, names: Any) -> list[int]:
    """Classes of the network for ``names``."""
    labels = trainer.dataset_json["labels"]
    foreground = [name for name in labels if name not in RESERVED]
    shown = join_first(foreground, MOST_NAMES)
    if not isinstance(names, list) or not names or not all(name in foreground for name in names):
        raise ConfigError(f"{ANNOTATED} of dataset.json is {names}; it must name some of the task's labels ({shown})")
    if any(not isinstance(labels[name], int) for name in foreground):
        raise ConfigError(
            f"task.labels=union: labels of dataset.json has regions ({shown}); what is annotated in part "
            "needs labels with one value each"
        )
    if sorted(labels[name] for name in foreground) != list(range(1, trainer.label_manager.num_segmentation_heads)):
        raise ConfigError(f"task.labels=union: labels of dataset.json need the values 0 to {len(foreground)}")
    return sorted({labels[name] for name in names})


def _sets_of_cases(trainer: nnUNetTrainer, sets: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Annotated classes of every case of the fold, from those of the centres."""
    cases = sorted(set().union(*trainer.do_split()))
    unnamed = [case for case in cases if case.partition("__")[0] not in sets]
    if unnamed:
        text = f"{ANNOTATED} of dataset.json lacks the centre of {{}}; name the labels that each centre has annotated"
        shown = join_first(unnamed, MOST_NAMES)
        raise DataError(text.format(f"the cases {shown}"), text.format(f"{len(unnamed)} cases"))
    return {case: sets[centre_of(case)[0]] for case in cases}


def _check_loss(trainer: nnUNetTrainer, is_pooled: bool) -> None:
    """Check that the trainer's loss takes merged classes."""
    name, loss = type(trainer).__name__, trainer.loss
    problem = None
    if not isinstance(loss, nn.Module):
        problem = "its loss is no torch module"
    elif trainer.enable_deep_supervision and not isinstance(loss, DeepSupervisionWrapper):
        problem = "its loss weighs the outputs of deep supervision in its own way"
    elif any(getattr(module, "weight", None) is not None for module in loss.modules()):
        problem = "its loss has a weight for each class, and classes are merged"
    elif is_pooled and any(getattr(one, "batch_dice", False) and getattr(one, "ddp", False) for one in loss.modules()):
        raise ConfigError(
            "task.labels=union with strategy=centralized: Dice over the batch (batch_dice of the plans) cannot be "
            "added up over devices whose cases are annotated unlike; set compute.num_devices=1"
        )
    if problem:
        raise ConfigError(f"task.labels=union: trainer.class={name} cannot learn from labels in part: {problem}")


def _own_step(trainer: nnUNetTrainer) -> Step:
    """A trainer's own ``train_step``, which has to call the trainer's loss."""
    step = trainer.train_step

    def train_step(batch: dict[str, Any]) -> dict[str, Any]:
        calls: list[None] = []
        with (
            cases_of(trainer.loss, batch),
            trainer.loss.register_forward_hook(lambda *_: calls.append(None)),
        ):
            output: dict[str, Any] = step(batch)
        if not calls:
            raise ConfigError(
                f"task.labels=union: trainer.class={type(trainer).__name__} has a train_step that does not call "
                "self.loss; what is not annotated would be learnt as background"
            )
        return output

    return train_step


def _validation_step(trainer: nnUNetTrainer, loss: MarginalLoss | PooledMarginalLoss) -> Step:
    """The trainer's ``validation_step``, whose counts of what is not annotated are 0: nnU-Net's mean leaves it out."""
    step = trainer.validation_step

    def count(batch: dict[str, Any], unannotated: Sequence[int]) -> dict[str, Any]:
        output: dict[str, Any] = step(batch)
        if not all(name in output for name in COUNTS):
            raise ConfigError(
                f"task.labels=union: trainer.class={type(trainer).__name__} has a validation_step without "
                f"{join_all(COUNTS)}; what is not annotated cannot be left out of its pseudo-Dice"
            )
        for name in COUNTS:
            output[name][[one - 1 for one in unannotated]] = 0
        return output

    def validation_step(batch: dict[str, Any]) -> dict[str, Any]:
        if isinstance(loss, MarginalLoss):
            with loss.without_pseudo_labels():
                return count(batch, loss.unannotated)
        # nnU-Net sums its counts over a batch: where cases are annotated unlike, it gets them one set at a time.
        outputs, sizes = [], []
        for number, rows in loss.parts_of(batch["keys"]).items():
            part = _rows_of(batch, rows)
            with loss.batch_of(part["keys"]):
                outputs.append(count(part, loss.unannotated[number]))
            sizes.append(len(rows))
        if len(outputs) == 1:
            return outputs[0]
        mean = np.average([output["loss"] for output in outputs], axis=0, weights=sizes)
        return {"loss": mean, **{name: np.sum([output[name] for output in outputs], axis=0) for name in COUNTS}}

    return validation_step


def _rows_of(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """These cases of a batch."""
    target = batch["target"]
    return {
        **batch,
        "data": batch["data"][rows],
        "target": [one[rows] for one in target] if isinstance(target, list | tuple) else target[rows],
        "keys": [batch["keys"][row] for row in rows],
    }


def _end_of_validation(trainer: nnUNetTrainer) -> Callable[[list[dict[str, Any]]], None]:
    """The trainer's ``on_validation_epoch_end``; a mean over no class does not make the moving average NaN for good."""
    end = trainer.on_validation_epoch_end

    def on_validation_epoch_end(outputs: list[dict[str, Any]]) -> None:
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # mean of an empty slice
            end(outputs)
        averages = trainer.logger.get_checkpoint()["ema_fg_dice"]
        if math.isnan(averages[-1]):
            averages[-1] = averages[-2] if len(averages) > 1 else FIRST_MOVING_AVERAGE

    return on_validation_epoch_end
