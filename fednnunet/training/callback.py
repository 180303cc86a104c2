"""The only place where a federated round meets the training loop."""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L

from fednnunet.training.module import NNUNetModule


class Rounds(Protocol):
    """What the callback asks of the node: rounds to train, and someone to take what was trained."""

    def begin(self, module: NNUNetModule) -> None:
        """An epoch begins; if it is a round's first, load what the server sent."""

    def end(self, module: NNUNetModule) -> bool:
        """An epoch ended; if it was its round's last, hand over and wait. True if another epoch follows."""


class FederatedCallback(L.Callback):
    """One epoch, or some, are a round.

    At the start of a round its arrays are loaded; after the validation of its last epoch the state is handed over and
    the loop waits for the next round. Optimizer, schedule, augmentation and compiled graph live on: the
    trainer is built once for all rounds. Without this callback the module is plain, local nnU-Net.

    Args:
        rounds: the node's end of the exchange.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.rounds.begin(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.rounds.end(pl_module):
            trainer.should_stop = True
