"""What the server writes down: plans, a row a node and round, a row a scored label."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fednnunet.exchange.messages import CaseScore
from fednnunet.files import write_atomically

log = logging.getLogger(__name__)

ROUND_COLUMNS = (
    "strategy",
    "round",
    "node",
    "train_loss",
    "val_loss",
    "pseudo_dice",
    "seconds_train",
    "seconds_exchange",
    "bytes_up",
    "bytes_down",
)
CASE_COLUMNS = ("strategy", "node", "fold", "case", "label", "dsc", "hd95")


class Observer(Protocol):
    """Someone who follows a run: the terminal, an experiment tracker."""

    def stage(self, name: str) -> None:
        """A stage began."""

    def plans(self, plans: Mapping[str, Any]) -> None:
        """All nodes have planned."""

    def node_done(self, node: str, server_round: int, metrics: Mapping[str, Any]) -> None:
        """A node's reply of a stage (``server_round`` 0) or round came in."""

    def round_done(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """All replies of a round are aggregated."""


class Journal:
    """Files of a run, written by the server; every file is whole at any moment.

    Args:
        folder: of the run.
        strategy: its name, for the tables.
        fold: the fold trained.
        observers: are told everything.

    Attributes:
        num_training: training cases (all folds) of every node, once they have told.
    """

    def __init__(self, folder: Path, strategy: str, fold: int, observers: Sequence[Observer] = ()) -> None:
        self.folder = folder
        self.strategy = strategy
        self.fold = fold
        self.observers = observers
        self.rounds = folder / "rounds.csv"
        self.num_training: dict[str, int] = {}

    def stage(self, name: str) -> None:
        """Tell that a stage began."""
        log.info("%s: %s", self.strategy, name)
        for observer in self.observers:
            observer.stage(name)

    def node_done(self, node: str, server_round: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """Tell that a node has replied."""
        log.info("node %s replied", node)
        for observer in self.observers:
            observer.node_done(node, server_round, metrics or {})

    def write_plans(self, plans: Mapping[str, Any]) -> None:
        """``plans.json``: nnU-Net's plans of every node."""
        write_atomically(self.folder / "plans.json", json.dumps(plans, indent=1))
        for observer in self.observers:
            observer.plans(plans)

    def go_on_from(self, server_round: int) -> None:
        """Drop rows of rounds after ``server_round``: they are trained again."""
        rows = []
        if self.rounds.is_file():
            with self.rounds.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["round"]) <= server_round]
        _write_rows(self.rounds, ROUND_COLUMNS, rows)

    def write_round(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a finished round, one row a node."""
        with self.rounds.open("a", newline="") as file:
            writer = csv.DictWriter(file, ROUND_COLUMNS, lineterminator="\n")
            writer.writerows({"strategy": self.strategy, "round": server_round, **row} for row in rows)
        for row in rows:
            log.info("round %d: %s", server_round, row)
        for observer in self.observers:
            observer.round_done(server_round, rows)

    def write_cases(self, scores: Sequence[CaseScore]) -> None:
        """``cases.csv``: one row a case and label; what is not defined stays empty."""
        rows = [
            {
                "strategy": self.strategy,
                "node": score.centre,
                "fold": self.fold,
                "case": score.case,
                "label": score.label,
                "dsc": score.dsc,
                "hd95": score.hd95,
            }
            for score in scores
        ]
        _write_rows(self.folder / "cases.csv", CASE_COLUMNS, rows)


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
