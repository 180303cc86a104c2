"""What the server notes down, passed on to the terminal and the experiment tracker."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fednnunet.exchange.messages import Fold
from fednnunet.tracking.base import Tracker
from fednnunet.tracking.terminal import RunProgress


class Follower:
    """An observer of the server's journal.

    Args:
        progress: the terminal's lines.
        tracker: of experiments.
    """

    def __init__(self, progress: RunProgress, tracker: Tracker) -> None:
        self.progress = progress
        self.tracker = tracker
        self.rounds = 0
        self.round = 0

    def stage(self, name: str) -> None:
        self.progress.stage(name)

    def message(self, text: str) -> None:
        self.progress.message(text)

    def waiting(self, nodes: Collection[str]) -> None:
        self.progress.waiting(nodes)

    def plans(self, plans: Mapping[str, Any]) -> None:
        self.tracker.log_plans(plans)

    def fold(self, fold: Fold, rounds: int, finished: int) -> None:
        self.rounds, self.round = rounds, 0
        self.progress.fold(fold, rounds, finished)
        self.tracker.begin_fold(fold, rounds)

    def node_done(self, node: str, server_round: int, metrics: Mapping[str, Any]) -> None:
        if server_round and server_round != self.round:
            self.round = server_round
            self.progress.round_started(server_round, self.rounds)
        self.progress.node_done(node, server_round, dict(metrics))

    def round_done(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.progress.round_done(server_round)
        self.tracker.log_round([{"round": server_round, **row} for row in rows])
