"""The events of a run, for its observers: the terminal, experiment trackers, the server's status file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fednnunet.exchange.messages import Fold


class RunObserver:
    """Follows a run; every method does nothing here. Methods are called in the thread of the server."""

    def on_run_start(self, metadata: Mapping[str, Any]) -> None:
        """The run starts; ``metadata`` holds what ``run.json`` will."""

    def on_stage(self, stage: str) -> None:
        """A stage began: ``fingerprint``, ``plan``, ``preprocess``, ``train``, ``evaluate`` or ``external``."""

    def on_message(self, text: str) -> None:
        """A line that the operator should read."""

    def on_waiting(self, nodes: Collection[str]) -> None:
        """The federation waits for these nodes to come back; none when it goes on."""

    def on_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """All nodes have planned; plans by node, as in ``plans.json``."""

    def on_fold_start(self, fold: Fold, rounds: int, finished: int) -> None:
        """A fold of ``rounds`` rounds is trained, of which ``finished`` were finished before."""

    def on_node_reply(self, node: str, server_round: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """A node's reply to a stage (``server_round`` 0) or of a round arrived; a round has metrics."""

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """All replies of a round are aggregated; one row per node, as in ``rounds.csv``."""

    def on_round_means(self, server_round: int, means: Mapping[str, float | None]) -> None:
        """Before a round's end, where its rows lack them: figures over all nodes, as in ``round_means.csv``."""

    def on_result(self, run_folder: Path) -> None:
        """The run was evaluated; its folder holds all files."""

    def on_run_end(self, error: BaseException | None = None) -> None:
        """The run ended, with ``error`` where it failed or was interrupted.

        May be called more than once, and without :meth:`on_run_start`; the first call counts.
        """


class RunObservers(RunObserver):
    """Several observers as one.

    Args:
        observers: each is notified of every event, in this order; more may be appended.
    """

    def __init__(self, observers: Sequence[RunObserver] = ()) -> None:
        self.observers = list(observers)

    def _each(self, event: Callable[[RunObserver], None]) -> None:
        for observer in self.observers:
            event(observer)

    def on_run_start(self, metadata: Mapping[str, Any]) -> None:
        self._each(lambda observer: observer.on_run_start(metadata))

    def on_stage(self, stage: str) -> None:
        self._each(lambda observer: observer.on_stage(stage))

    def on_message(self, text: str) -> None:
        self._each(lambda observer: observer.on_message(text))

    def on_waiting(self, nodes: Collection[str]) -> None:
        self._each(lambda observer: observer.on_waiting(nodes))

    def on_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        self._each(lambda observer: observer.on_plans(plans))

    def on_fold_start(self, fold: Fold, rounds: int, finished: int) -> None:
        self._each(lambda observer: observer.on_fold_start(fold, rounds, finished))

    def on_node_reply(self, node: str, server_round: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        self._each(lambda observer: observer.on_node_reply(node, server_round, metrics or {}))

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._each(lambda observer: observer.on_round_end(server_round, rows))

    def on_round_means(self, server_round: int, means: Mapping[str, float | None]) -> None:
        self._each(lambda observer: observer.on_round_means(server_round, means))

    def on_result(self, run_folder: Path) -> None:
        self._each(lambda observer: observer.on_result(run_folder))

    def on_run_end(self, error: BaseException | None = None) -> None:
        self._each(lambda observer: observer.on_run_end(error))
