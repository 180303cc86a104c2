"""Files that the server writes of a run: plans, a row per node and round, a row per evaluated label."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import DataNote
from fednnunet.exchange.messages import Fold, MeanScore, PersonalTraining, Score
from fednnunet.files import append_atomically, write_atomically
from fednnunet.listing import MOST_NODES, join_nodes
from fednnunet.run_files import (
    CASE_COLUMNS,
    CASES_FILE,
    CHANNEL_COLUMNS,
    CHANNELS_FILE,
    DATA_NOTE_COLUMNS,
    DATA_NOTES_FILE,
    FINE_TUNED,
    LABEL_COLUMNS,
    LABELS_FILE,
    LOG_FILE,
    NUM_CASES_COLUMN,
    PLANS_FILE,
    ROUND_COLUMNS,
    ROUND_MEAN_COLUMNS,
    ROUND_MEANS_FILE,
    ROUNDS_FILE,
    SHARED,
)
from fednnunet.server.run_observer import RunObserver, RunObservers

log = logging.getLogger(__name__)


class RunRecorder(RunObservers):
    """Writes the files of a run at the server, then notifies the observers; every file is complete at any moment.

    Args:
        folder: the run's.
        strategy: name of the strategy, for the tables.
        folds: folds to train; with several, ``rounds.csv`` gets a last column ``fold``.
        observers: are notified of every event.
        personal: how nodes come to models of their own, where they do: ``cases.csv`` then has both.

    Attributes:
        num_training: node to its number of training cases (all folds), once they are known.
        unscored_folds: centre to the folds in which it holds no case out, once they are known.
        training: rounds of a fold and iterations of a round, once they are known.
        noise: node to its noise, what it costs, and what was said of it; empty where none is added.
    """

    def __init__(
        self,
        folder: Path,
        strategy: str,
        folds: Sequence[Fold] = (0,),
        observers: Sequence[RunObserver] = (),
        personal: PersonalTraining | None = None,
    ) -> None:
        super().__init__(observers)
        self.folder = folder
        self.strategy = strategy
        is_ditto = personal is not None and personal.tie is not None
        self._shared_strategy = f"{strategy} {SHARED}" if is_ditto else strategy
        self._personal_strategy = strategy if is_ditto else f"{strategy} {FINE_TUNED}"
        self.rounds = folder / ROUNDS_FILE
        self.round_means = folder / ROUND_MEANS_FILE
        self.cases = folder / CASES_FILE
        self.num_training: dict[str, int] = {}
        self.unscored_folds: dict[str, list[Fold]] = {}
        self.training: dict[str, int] = {}
        self.noise: dict[str, dict[str, Any]] = {}
        fold_column = () if len(folds) == 1 else ("fold",)
        self._round_columns = (*ROUND_COLUMNS, *fold_column)
        self._mean_columns = (*ROUND_MEAN_COLUMNS, *fold_column)
        self._case_rows = _read_rows(self.cases)
        self._fold: Fold = folds[0]
        self._last_recorded = 0

    def models_of(self, fold: Fold) -> set[str]:
        """Nodes whose models of a fold are evaluated; empty before the fold is finished."""
        return {row["model"] for row in self._case_rows if str(row["fold"]) == str(fold)}

    def has_scores_at(self, node: str) -> bool:
        """Whether cases of a node are evaluated."""
        return any(row["node"] == node for row in self._case_rows)

    def nodes_of_rounds(self, fold: Fold) -> dict[int, set[str]]:
        """Rounds of a fold that an earlier, interrupted process of this run has finished, and who was in each."""
        nodes: dict[int, set[str]] = {}
        for row in _read_rows(self.rounds):
            if row.get("fold", str(fold)) == str(fold):
                nodes.setdefault(int(row["round"]), set()).add(row["node"])
        return nodes

    def update_norms_of(self, fold: Fold, until: int) -> list[list[float]]:
        """Norms of the updates in each recorded round of a fold up to ``until``: of nodes, or of their sums."""
        norms: dict[int, list[float]] = {}
        for row in (*_read_rows(self.rounds), *_read_rows(self.round_means)):
            if row.get("fold", str(fold)) == str(fold):
                norms.setdefault(int(row["round"]), []).extend(float(n) for n in [row.get("update_norm")] if n)
        return [norms[server_round] for server_round in sorted(norms) if server_round <= until]

    def on_stage(self, stage: str) -> None:
        """Log that a stage began."""
        log.info("%s: %s", self.strategy, stage)
        super().on_stage(stage)

    def on_message(self, text: str) -> None:
        """Log a line for the operator."""
        log.warning("%s", text)
        super().on_message(text)

    def on_node_messages(self, lines: Mapping[str, Sequence[str]], summary: str) -> None:
        """Lines about single nodes; of many nodes, the operator gets ``summary`` and the log the lines."""
        are_many = len(lines) > MOST_NODES
        for of_node in lines.values():
            for line in of_node:
                if are_many:
                    log.warning("%s", line)
                else:
                    self.on_message(line)
        if are_many:
            self.on_message(f"{summary}: {join_nodes(list(lines))}; {LOG_FILE} has what of each")

    def on_node_reply(self, node: str, server_round: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """Log that a node replied."""
        log.info("node %s replied", node)
        super().on_node_reply(node, server_round, metrics)

    def on_data_notes(self, notes: Mapping[str, Sequence[DataNote]]) -> None:
        """Tell what people should know of the nodes' images, and write ``data_notes.csv``; without notes there is none.

        Args:
            notes: by node.
        """
        rows = [{"node": node, **note.model_dump(mode="json")} for node, found in notes.items() for note in found]
        path = self.folder / DATA_NOTES_FILE
        if not rows:
            path.unlink(missing_ok=True)
            return
        _write_rows(path, DATA_NOTE_COLUMNS, rows)
        lines = {node: [f"node {node}: {note}" for note in found] for node, found in notes.items() if found}
        self.on_node_messages(lines, f"something should be known of the images of {len(lines)} nodes")

    def on_labels(self, values: Mapping[str, int], annotated: Mapping[str, Collection[str]]) -> None:
        """Write ``labels.csv``: who annotates what.

        Args:
            values: label to value.
            annotated: node to the labels that it annotates.
        """
        _write_holders(self.folder / LABELS_FILE, LABEL_COLUMNS, values, annotated)

    def on_channels(self, names: Sequence[str], acquired: Mapping[str, Collection[str]]) -> None:
        """Write ``channels.csv``: who has what.

        Args:
            names: channels, in the order of the network's input.
            acquired: node to the channels that it has.
        """
        numbers = {name: number for number, name in enumerate(names)}
        _write_holders(self.folder / CHANNELS_FILE, CHANNEL_COLUMNS, numbers, acquired)

    def labels_begun_with(self) -> dict[str, int] | None:
        """Labels of the networks that an earlier, interrupted process of this run has trained; None without any.

        Raises:
            DataError: ``labels.csv`` is missing or damaged.
        """
        return self._begun_with(LABELS_FILE, "labels")

    def channels_begun_with(self) -> list[str] | None:
        """Channels of the networks that an earlier, interrupted process of this run has trained; None without any.

        Raises:
            DataError: ``channels.csv`` is missing or damaged.
        """
        found = self._begun_with(CHANNELS_FILE, "channels")
        return None if found is None else sorted(found, key=found.__getitem__)

    def _begun_with(self, name: str, what: str) -> dict[str, int] | None:
        if not _read_rows(self.rounds):
            return None
        path = self.folder / name
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return {held: int(value) for held, value, *_ in list(csv.reader(file))[1:]}
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(
                f"{path}: the {what} that the run began with cannot be read ({error}); restore it"
            ) from None

    def on_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """Write ``plans.json``: nnU-Net's plans of every node."""
        write_atomically(self.folder / PLANS_FILE, json.dumps(plans, indent=1))
        super().on_plans(plans)

    def on_fold_start(self, fold: Fold, rounds: int, finished: int) -> None:
        """Rounds after ``finished`` are trained again; their rows stay until the first of these is over."""
        self._fold = fold
        super().on_fold_start(fold, rounds, finished)
        self.on_stage("train")
        _write_rows(self.rounds, self._round_columns, _read_rows(self.rounds))  # without half a line at its end
        self._last_recorded = max(self.nodes_of_rounds(fold), default=0)

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a finished round to ``rounds.csv``, one row per node, in place of any of it and of later rounds."""
        fold = {"fold": self._fold} if "fold" in self._round_columns else {}
        new = [{"strategy": self.strategy, "round": server_round, **row, **fold} for row in rows]
        if server_round <= self._last_recorded:
            before = [row for row in _read_rows(self.rounds) if not self._is_of(row, self._fold, server_round)]
            _write_rows(self.rounds, self._round_columns, [*before, *new])
        else:
            text = io.StringIO()
            csv.DictWriter(text, self._round_columns, lineterminator="\n").writerows(new)
            append_atomically(self.rounds, text.getvalue())
        self._last_recorded = server_round
        for row in rows:
            log.info("fold %s, round %d: %s", self._fold, server_round, row)
        super().on_round_end(server_round, rows)

    def on_round_means(self, server_round: int, means: Mapping[str, float | None]) -> None:
        """Add a row to ``round_means.csv``, in place of any of this round and of later ones."""
        fold = {"fold": self._fold} if "fold" in self._mean_columns else {}
        before = [row for row in _read_rows(self.round_means) if not self._is_of(row, self._fold, server_round)]
        new = {"strategy": self.strategy, "round": server_round, **means, **fold}
        _write_rows(self.round_means, self._mean_columns, [*before, new])
        super().on_round_means(server_round, means)

    def _is_of(self, row: Mapping[str, Any], fold: Fold, first_round: int) -> bool:
        """Whether a row of a round is of this fold and of ``first_round`` or later."""
        return row.get("fold", str(fold)) == str(fold) and int(row["round"]) >= first_round

    def write_cases(
        self,
        fold: Fold | str,
        scores: Sequence[Score],
        kept: Mapping[str, str] | None = None,
        personal: Sequence[Score] = (),
        personal_kept: Mapping[str, str] | None = None,
    ) -> None:
        """Add scores to ``cases.csv``: one row per model, case and label; undefined scores stay empty.

        A row of means over cases has no number of a case, but their count; its label is empty where it is over labels.

        Args:
            fold: fold that the models were trained on, or ``ensemble`` where several were averaged.
            scores: each names its model.
            kept: centre whose scores stay at the node to the model that was scored; a row with a count of 0.
            personal: scores of the models that are the nodes' own, under a strategy of their own.
            personal_kept: as ``kept``, of these.
        """
        rows = [
            *self._case_rows,
            *_model_rows(self._shared_strategy, fold, scores, kept or {}),
            *_model_rows(self._personal_strategy, fold, personal, personal_kept or {}),
        ]
        counted = any(NUM_CASES_COLUMN in row for row in rows)
        _write_rows(self.cases, (*CASE_COLUMNS, NUM_CASES_COLUMN) if counted else CASE_COLUMNS, rows)
        self._case_rows = rows  # scores that could not be written are requested again


def _model_rows(
    strategy: str, fold: Fold | str, scores: Sequence[Score], kept: Mapping[str, str]
) -> list[dict[str, Any]]:
    of_model = {"strategy": strategy, "fold": fold}
    return [
        *({**of_model, **_case_row(score)} for score in scores),
        *({**of_model, "node": centre, "model": model, NUM_CASES_COLUMN: 0} for centre, model in kept.items()),
    ]


def _case_row(score: Score) -> dict[str, Any]:
    row = {"node": score.centre, **score.model_dump(exclude={"centre", "num_cases"})}
    return row | {NUM_CASES_COLUMN: score.num_cases} if isinstance(score, MeanScore) else row


def _write_holders(
    path: Path, columns: Sequence[str], values: Mapping[str, int], held: Mapping[str, Collection[str]]
) -> None:
    """Write a row per name, with its value and ``yes`` where a node has it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *held])
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        writer.writerow([name, value, *("yes" if name in names else "" for names in held.values())])
    write_atomically(path, text.getvalue())


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # the machine may have died within a line
    return list(csv.DictReader(io.StringIO(whole, newline="")))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
