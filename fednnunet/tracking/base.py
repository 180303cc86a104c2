"""Experiment trackers: ``logger=csv``, ``wandb``, ``tensorboard``, or several: ``logger=[wandb,tensorboard]``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fednnunet.errors import FednnUNetError
from fednnunet.exchange.messages import Fold
from fednnunet.reporting import figures
from fednnunet.reporting.run_folder import Run, node_order
from fednnunet.reporting.tables.results_table import case_means, results_table

log = logging.getLogger(__name__)

MEANS, SLOWEST, TOTALS = (
    ("train_loss", "val_loss", "pseudo_dice"),
    ("seconds_train", "seconds_exchange"),
    ("bytes_up", "bytes_down"),
)
"""Columns of ``rounds.csv`` by what tells of all nodes: their mean, the slowest one, the sum."""


class Tracker:
    """Follows one run of the federation, or takes the comparison of a sweep; on its own it does nothing.

    Attributes:
        tell: says something to the operator.
    """

    tell: Callable[[str], None] = staticmethod(log.warning)

    def start(self, run: Mapping[str, Any]) -> None:
        """The run begins; ``run`` holds what ``run.json`` does.

        Raises:
            ConfigError: the tracker is not set up.
        """

    def log_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """The nodes' plans, as in ``plans.json``."""

    def begin_fold(self, fold: Fold, rounds: int) -> None:
        """The rounds that follow are of this fold."""

    def log_round(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A round is over; rows as in ``rounds.csv``, one per node."""

    def log_result(self, run_folder: Path) -> None:
        """The run was scored; its folder holds all files."""

    def log_comparison(self, folder: Path) -> None:
        """A sweep is over; its folder holds the comparison of its runs."""

    def finish(self, ok: bool) -> None:
        """The run is over, well or not. May be called twice, and without :meth:`start`."""


class CsvTracker(Tracker):
    """Adds nothing: the CSV files of the run folder are written by every run."""


class Trackers(Tracker):
    """Several trackers as one, none of which can end a run: one that fails is named, and left out from then on.

    Args:
        trackers: told everything, in this order.
        tell: says something to the operator.
    """

    def __init__(self, trackers: Sequence[Tracker], tell: Callable[[str], None]) -> None:
        self._trackers = list(trackers)
        self._working = list(trackers)
        self.tell = tell
        for tracker in trackers:
            tracker.tell = tell

    def start(self, run: Mapping[str, Any]) -> None:
        """As a tracker's. What a user has to set up is an error here, before anything is trained."""
        for tracker in list(self._working):
            try:
                tracker.start(run)
            except FednnUNetError:
                raise
            except Exception as error:  # noqa: BLE001
                self._leave_out(tracker, error)

    def log_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        self._each(lambda tracker: tracker.log_plans(plans))

    def begin_fold(self, fold: Fold, rounds: int) -> None:
        self._each(lambda tracker: tracker.begin_fold(fold, rounds))

    def log_round(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._each(lambda tracker: tracker.log_round(rows))

    def log_result(self, run_folder: Path) -> None:
        self._each(lambda tracker: tracker.log_result(run_folder))

    def log_comparison(self, folder: Path) -> None:
        self._each(lambda tracker: tracker.log_comparison(folder))

    def finish(self, ok: bool) -> None:
        """As a tracker's; also of those that were left out, for what they have."""
        for tracker in self._trackers:
            try:
                tracker.finish(ok)
            except Exception as error:  # noqa: BLE001
                self._leave_out(tracker, error)

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for tracker in list(self._working):
            try:
                do(tracker)
            except Exception as error:  # noqa: BLE001
                self._leave_out(tracker, error)

    def _leave_out(self, tracker: Tracker, error: Exception) -> None:
        if tracker in self._working:
            self._working.remove(tracker)
            log.warning("%s failed", type(tracker).__name__, exc_info=error)
            reason = " ".join(str(error).split()) or type(error).__name__
            self.tell(f"{type(tracker).__name__} failed and is left out from here on: {reason}")


def node_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """What there is to plot of a node's round: the numbers of its row, but for the round itself."""
    return {key: float(value) for key, value in row.items() if key != "round" and _is_number(value)}


def round_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What there is to plot of a round of all nodes, such as ``train_loss/mean`` and ``pseudo_dice/<node>``."""
    totals: dict[str, float] = {}
    for columns, name, gather in ((MEANS, "mean", _mean), (SLOWEST, "slowest", max), (TOTALS, "total", sum)):
        for column in columns:
            values = [float(row[column]) for row in rows if _is_number(row.get(column))]
            if values:
                totals[f"{column}/{name}"] = gather(values)
    for row in rows:
        if _is_number(row.get("pseudo_dice")):
            totals[f"pseudo_dice/{row['node']}"] = float(row["pseudo_dice"])
    return totals


def scores_of(run: Run) -> dict[str, dict[str, float]]:
    """Final scores as in the table of results, where defined: metric, then node or ``mean``, to value."""
    if run.cases.empty:
        return {}
    table = results_table(case_means(run.cases), *node_order([run]))
    return {
        metric.column: {
            node: float(value)
            for node, value in table.values[metric.column].loc[run.setup].items()
            if not math.isnan(value)
        }
        for metric in table.metrics
    }


def overlay_images(run: Run) -> Iterator[tuple[str, int, bytes]]:
    """Centre, number of a held-out case, and its overlay as PNG; one case a centre.

    Raises:
        DataError: an overlay cannot be read; names it.
    """
    for centre, cases in run.overlays.items():
        case = min(cases)
        overlay = figures.read_overlay(cases[case])
        yield centre, case, figures.as_png(figures.overlay_grid(centre, {f"case {case}": {run.setup: overlay}}))


def fold_prefix(run: Mapping[str, Any], fold: Fold) -> str:
    """What stands before a curve's name: nothing, or the fold where ``run`` trains several."""
    return f"fold_{fold}/" if isinstance(run.get("fold"), list) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
