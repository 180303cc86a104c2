"""The only place where a federated round meets the training loop."""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L

from fednnunet.training.module import NNUNetModule


class Rounds(Protocol):
    """What the callback needs of the node: rounds to train, and somewhere to send what was trained."""

    def start_epoch(self, module: NNUNetModule) -> None:
        """An epoch starts: load what the server sent, if it is the first of its round."""

    def end_epoch(self, module: NNUNetModule) -> bool:
        """An epoch has ended: send the layers and wait, if it was the last of its round.

        Returns:
            Whether another epoch follows.
        """


class FederatedCallback(L.Callback):
    """Makes one epoch or several a round.

    At the start of a round its arrays are loaded; after the validation of its last epoch the state is sent and the loop
    waits for the next round. Optimizer, schedule, augmentation and compiled graph stay in memory: the trainer is built
    once for all rounds. Without this callback the module trains as plain, local nnU-Net does.

    Args:
        rounds: the node's side of the exchange.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.rounds.start_epoch(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.rounds.end_epoch(pl_module):
            trainer.should_stop = True
