"""One round at a node: the request that opens it, what makes it valid, the reply to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.channel import Request
from fednnunet.exchange.messages import EvaluateRequest, TrainReply, TrainRequest
from fednnunet.training.checkpoint import finished_rounds, leave_to_round
from fednnunet.training.devices import peak_memory_gib
from fednnunet.training.network_state import check_state, state_spec


@dataclass
class OpenRound:
    """A round that the server asked for and has no reply to yet.

    Attributes:
        request: what to reply to.
        body: its body.
        epochs_left: epochs of the round that are not trained yet.
        arrays: the layers beside it, decoded.
        started: time just before its arrays are loaded, in seconds of ``time.perf_counter``.
        loaded: time at which they were loaded, when its first epoch begins; None before.
    """

    request: Request
    body: TrainRequest
    epochs_left: int
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    started: float = 0.0
    loaded: float | None = None


def check_round(trainer: nnUNetTrainer, body: TrainRequest, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a round that cannot be trained or replied to before it starts, not after it.

    Raises:
        ProtocolError: it is beyond the last epoch, or its layers do not fit the network.
    """
    if epochs_before(body) >= trainer.num_epochs:
        raise ProtocolError(f"round {body.server_round} was asked for; there are {trainer.num_epochs} epochs")
    check_state(trainer.network, arrays)
    state_spec(trainer.network, body.layers)


def check_steps(trainer: nnUNetTrainer, body: TrainRequest, least: int) -> None:
    """Refuse a round of so few training steps that its layers tell much of single images.

    Args:
        trainer: trainer of the fold.
        body: request of the round.
        least: fewest steps that the node trains in a round; 0 for no limit.

    Raises:
        ConfigError: the round has fewer, as its own epochs or those that are left allow.
    """
    steps = epochs_of(trainer, body) * trainer.num_iterations_per_epoch
    if steps < least:
        raise ConfigError(
            f"round {body.server_round} has {steps} training steps, and privacy.least_steps={least} is the fewest that "
            "this node trains between two exchanges; raise trainer.iterations, trainer.epochs or strategy.local_epochs"
        )


def must_rewind(trainer: nnUNetTrainer, body: TrainRequest, finished: int) -> bool:
    """Whether the server goes back to before rounds that the node has ``finished``, and the node can, too."""
    can = not body.trained or body.trained in finished_rounds(Path(trainer.output_folder))
    return body.server_round < finished and can


def round_to_resume_from(trainer: nnUNetTrainer, body: TrainRequest | EvaluateRequest) -> int:
    """The last round that counted; the last before this one, if later ones came too late to count."""
    rounds = finished_rounds(Path(trainer.output_folder))
    if body.trained not in rounds and body.trained < body.server_round:
        return max((done for done in rounds if body.trained < done < body.server_round), default=body.trained)
    return body.trained


def save_with_round(trainer: nnUNetTrainer, current: OpenRound) -> None:
    """Where an epoch that starts is the last of its round, let the round's checkpoint be what the trainer saves."""
    if current.epochs_left == 1 or trainer.current_epoch + 1 >= trainer.num_epochs:
        leave_to_round(trainer)


def epochs_before(body: TrainRequest) -> int:
    """Epochs that are over when the round starts."""
    return (body.server_round - 1) * body.epochs


def epochs_of(trainer: nnUNetTrainer, body: TrainRequest) -> int:
    """Epochs of the round: fewer than asked for, where the trainer has fewer left."""
    return min(body.epochs, trainer.num_epochs - epochs_before(body))


def round_reply(
    trainer: nnUNetTrainer, body: TrainRequest, seconds_train: float, seconds_exchange: float
) -> TrainReply:
    """The reply to a round: nnU-Net's figures of its last epoch, None where they are not finite."""

    def last(name: str) -> float | None:
        value = float(trainer.logger.get_value(name, step=-1))
        return value if math.isfinite(value) else None

    return TrainReply(
        fold=body.fold,
        server_round=body.server_round,
        num_examples=num_examples(trainer),
        train_loss=last("train_losses"),
        val_loss=last("val_losses"),
        pseudo_dice=last("mean_fg_dice"),
        learning_rate=last("lrs"),
        seconds_train=seconds_train,
        seconds_exchange=seconds_exchange,
        gpu_memory_gib=peak_memory_gib(trainer.device),
    )


def num_examples(trainer: nnUNetTrainer) -> int:
    """Training cases of the trainer's fold."""
    return len(trainer.do_split()[0])
