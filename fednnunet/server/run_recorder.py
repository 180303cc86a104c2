"""What the server writes down: plans, a row per node and round, a row a scored label."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fednnunet.exchange.messages import CaseScore, Fold
from fednnunet.files import append_atomically, write_atomically
from fednnunet.run_files import CASE_COLUMNS, CASES_FILE, PLANS_FILE, ROUND_COLUMNS, ROUNDS_FILE

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Someone who follows a run: the terminal, an experiment tracker."""

    def stage(self, name: str) -> None:
        """A stage began."""

    def message(self, text: str) -> None:
        """Something that the operator should read."""

    def waiting(self, nodes: Collection[str]) -> None:
        """The federation waits for these nodes to come back; none when it goes on."""

    def plans(self, plans: Mapping[str, Any]) -> None:
        """All nodes have planned."""

    def fold(self, fold: Fold, rounds: int, finished: int) -> None:
        """A fold of ``rounds`` rounds is trained, of which ``finished`` were before."""

    def node_done(self, node: str, server_round: int, metrics: Mapping[str, Any]) -> None:
        """A node's reply of a stage (``server_round`` 0) or round came in."""

    def round_done(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """All replies of a round are aggregated."""


class RunRecorder:
    """Files of a run, written by the server; every file is whole at any moment.

    Args:
        folder: of the run.
        strategy: its name, for the tables.
        folds: to be trained; with several, ``rounds.csv`` gets a last column ``fold``.
        observers: are told everything.

    Attributes:
        num_training: training cases (all folds) of every node, once they have told.
        training: rounds of a fold and iterations of a round, once the nodes have told.
    """

    def __init__(
        self, folder: Path, strategy: str, folds: Sequence[Fold] = (0,), observers: Sequence[Observer] = ()
    ) -> None:
        self.folder = folder
        self.strategy = strategy
        self.observers = observers
        self.rounds = folder / ROUNDS_FILE
        self.cases = folder / CASES_FILE
        self.num_training: dict[str, int] = {}
        self.training: dict[str, int] = {}
        self._round_columns = ROUND_COLUMNS if len(folds) == 1 else (*ROUND_COLUMNS, "fold")
        self._case_rows = _read_rows(self.cases)
        self._fold: Fold = folds[0]

    def models_of(self, fold: Fold) -> set[str]:
        """Nodes whose models of a fold are scored; empty before the fold is finished."""
        return {row["model"] for row in self._case_rows if str(row["fold"]) == str(fold)}

    def has_scores_at(self, node: str) -> bool:
        """Whether cases of a node are scored."""
        return any(row["node"] == node for row in self._case_rows)

    def nodes_of_rounds(self, fold: Fold) -> dict[int, set[str]]:
        """Rounds of a fold that an earlier, interrupted process of this run has finished, and who was in each."""
        nodes: dict[int, set[str]] = {}
        for row in _read_rows(self.rounds):
            if row.get("fold", str(fold)) == str(fold):
                nodes.setdefault(int(row["round"]), set()).add(row["node"])
        return nodes

    def update_norms_of(self, fold: Fold) -> list[list[float]]:
        """Norms of the updates that were averaged in the rounds of a fold that are written down, in their order."""
        norms: dict[int, list[float]] = {}
        for row in _read_rows(self.rounds):
            if row.get("fold", str(fold)) == str(fold):
                norms.setdefault(int(row["round"]), []).extend(float(n) for n in [row.get("update_norm")] if n)
        return [norms[server_round] for server_round in sorted(norms)]

    def stage(self, name: str) -> None:
        """Tell that a stage began."""
        log.info("%s: %s", self.strategy, name)
        for observer in self.observers:
            observer.stage(name)

    def message(self, text: str) -> None:
        """Tell the operator."""
        log.warning("%s", text)
        for observer in self.observers:
            observer.message(text)

    def waiting(self, nodes: Collection[str]) -> None:
        """Tell whom the federation waits for; none when it goes on."""
        for observer in self.observers:
            observer.waiting(nodes)

    def node_done(self, node: str, server_round: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """Tell that a node has replied."""
        log.info("node %s replied", node)
        for observer in self.observers:
            observer.node_done(node, server_round, metrics or {})

    def write_plans(self, plans: Mapping[str, Any]) -> None:
        """``plans.json``: nnU-Net's plans of every node."""
        write_atomically(self.folder / PLANS_FILE, json.dumps(plans, indent=1))
        for observer in self.observers:
            observer.plans(plans)

    def begin_fold(self, fold: Fold, rounds: int, finished: int) -> None:
        """A fold is trained from round ``finished`` on; rows of its later rounds go: they are trained again."""
        self._fold = fold
        for observer in self.observers:
            observer.fold(fold, rounds, finished)
        self.stage("train")
        rows = [
            row
            for row in _read_rows(self.rounds)
            if row.get("fold", str(fold)) != str(fold) or int(row["round"]) <= finished
        ]
        _write_rows(self.rounds, self._round_columns, rows)

    def write_round(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a finished round, one row per node."""
        fold = {"fold": self._fold} if "fold" in self._round_columns else {}
        text = io.StringIO()
        writer = csv.DictWriter(text, self._round_columns, lineterminator="\n")
        writer.writerows({"strategy": self.strategy, "round": server_round, **row, **fold} for row in rows)
        append_atomically(self.rounds, text.getvalue())
        for row in rows:
            log.info("fold %s, round %d: %s", self._fold, server_round, row)
        for observer in self.observers:
            observer.round_done(server_round, rows)

    def write_cases(self, fold: Fold | str, scores: Sequence[CaseScore]) -> None:
        """Add scores to ``cases.csv``: one row per model, case and label; what is not defined stays empty.

        Args:
            fold: that the models were trained on, or ``ensemble`` where several were averaged.
            scores: each names its model.
        """
        rows = self._case_rows + [
            {"strategy": self.strategy, "node": score.centre, "fold": fold, **score.model_dump(exclude={"centre"})}
            for score in scores
        ]
        _write_rows(self.cases, CASE_COLUMNS, rows)
        self._case_rows = rows  # what could not be written is asked for again


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # the machine may have gone amid a line
    return list(csv.DictReader(io.StringIO(whole, newline="")))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
