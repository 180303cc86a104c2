"""Experiment trackers: ``logger=csv``, ``wandb``, ``tensorboard``, or several: ``logger=[wandb,tensorboard]``."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fednnunet.errors import FednnUNetError
from fednnunet.exchange.messages import Fold
from fednnunet.listing import MOST_NODES
from fednnunet.reporting import figures
from fednnunet.reporting.case_selection import choose_nodes
from fednnunet.reporting.run_folder import Run, node_order, read_run
from fednnunet.reporting.scores import collect_scores
from fednnunet.reporting.tables.results_table import MEAN
from fednnunet.server.run_observer import RunObserver, RunObservers

log = logging.getLogger(__name__)

MEANS, SLOWEST, TOTALS = (
    ("train_loss", "val_loss", "pseudo_dice"),
    ("seconds_train", "seconds_exchange"),
    ("bytes_up", "bytes_down"),
)
"""Columns of ``rounds.csv`` by what summarises all nodes: their mean, the slowest one, the sum."""
SPREAD: Mapping[str, Callable[[Sequence[float]], float]] = {"lowest": min, "median": statistics.median, "highest": max}
"""What takes the place of a curve per node where nodes are many."""
NODES = "nodes"
"""First part of the names of a single node's figures, where nodes are many."""


class Tracker(RunObserver):
    """Follows a run for an experiment tracker, or takes the comparison of a sweep; on its own it does nothing.

    Events that a tracker uses: :meth:`on_run_start` (raises ConfigError where the tracker cannot work as configured),
    :meth:`on_plans`, :meth:`on_fold_start`, :meth:`on_round_end`, :meth:`on_result`, :meth:`on_run_end`.

    Attributes:
        notify: shows the operator a line.
        round_means: figures over all nodes of the round that ends next, where its rows lack them.
    """

    notify: Callable[[str], None] = staticmethod(log.warning)
    round_means: Mapping[str, float | None] = {}

    def on_round_means(self, server_round: int, means: Mapping[str, float | None]) -> None:
        """Keep figures that the rows of the round lack."""
        self.round_means = means

    def log_comparison(self, folder: Path) -> None:
        """A sweep is finished; its folder holds the comparison of its runs."""


class CsvTracker(Tracker):
    """Adds nothing: the CSV files of the run folder are written by every run."""


class Trackers(RunObservers):
    """Several trackers as one, none of which can end a run: one that fails is named, and left out from then on.

    Args:
        trackers: are notified of every event, in this order.
        notify: shows the operator a line.
    """

    def __init__(self, trackers: Sequence[Tracker], notify: Callable[[str], None]) -> None:
        super().__init__(trackers)
        self._trackers = trackers
        self._notify = notify
        for tracker in trackers:
            tracker.notify = notify

    def on_run_start(self, metadata: Mapping[str, Any]) -> None:
        """As a tracker's; what a user has to set up is an error here, before anything is trained."""
        for tracker in list(self.observers):
            with self._guard(tracker, passes=FednnUNetError):
                tracker.on_run_start(metadata)

    def log_comparison(self, folder: Path) -> None:
        """As a tracker's."""
        for tracker in self._trackers:
            with self._guard(tracker):
                tracker.log_comparison(folder)

    def on_run_end(self, error: BaseException | None = None) -> None:
        """As a tracker's; also for those that were left out, so that what they have is kept."""
        for tracker in self._trackers:
            with self._guard(tracker):
                tracker.on_run_end(error)

    def _each(self, event: Callable[[RunObserver], None]) -> None:
        for tracker in list(self.observers):
            with self._guard(tracker):
                event(tracker)

    @contextlib.contextmanager
    def _guard(self, tracker: RunObserver, passes: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """Leave a tracker out that fails, but for errors that are to pass."""
        try:
            yield
        except passes:
            raise
        except Exception as error:
            if tracker in self.observers:
                self.observers.remove(tracker)
                log.warning("%s failed", type(tracker).__name__, exc_info=error)
                reason = " ".join(str(error).split()) or type(error).__name__
                self._notify(f"{type(tracker).__name__} failed and is left out from here on: {reason}")


def has_many_nodes(run_folder: Path, plans: Mapping[str, Any] | None = None) -> bool:
    """Whether a run has more nodes than are shown one by one (:data:`~fednnunet.listing.MOST_NODES`).

    Args:
        run_folder: of the run; its configuration names nodes.
        plans: by node, where they are known.

    Raises:
        DataError: a file of the run cannot be read; names it.
    """
    training, external = node_order([read_run(run_folder)])
    return max(len(training) + len(external), len(plans or {})) > MOST_NODES


def node_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Curves of a node's round: the numbers of its row, but for the round itself."""
    return {key: float(value) for key, value in row.items() if key != "round" and _is_number(value)}


def round_metrics(
    rows: Sequence[Mapping[str, Any]], means: Mapping[str, float | None], many: bool = False
) -> dict[str, float]:
    """Curves of a round of all nodes, such as ``train_loss/mean`` and ``pseudo_dice/<node>``.

    Args:
        rows: one per node, as in ``rounds.csv``.
        means: figures over all nodes that rows lack, as in ``round_means.csv``.
        many: whether :data:`SPREAD` takes the place of single nodes, as in ``pseudo_dice/median``.
    """
    totals = {f"{name}/mean": value for name, value in means.items() if name in MEANS and value is not None}
    for columns, name, gather in ((MEANS, "mean", _mean), (SLOWEST, "slowest", max), (TOTALS, "total", sum)):
        for column in columns:
            values = [float(row[column]) for row in rows if _is_number(row.get(column))]
            if values:
                totals[f"{column}/{name}"] = gather(values)
            if values and many and columns == MEANS:
                totals |= {f"{column}/{name}": float(summarise(values)) for name, summarise in SPREAD.items()}
    for row in rows:
        if not many and _is_number(row.get("pseudo_dice")):
            totals[f"pseudo_dice/{row['node']}"] = float(row["pseudo_dice"])
    return totals


def scores_of(run: Run) -> dict[str, dict[str, float]]:
    """Final scores as in the results table, where defined: metric, then node or ``mean``, to value."""
    table = collect_scores(run.cases, run.means).table(*node_order([run]))
    if table is None:
        return {}
    return {
        metric.column: {
            node: float(value)
            for node, value in table.values[metric.column].loc[run.strategy].items()
            if not math.isnan(value)
        }
        for metric in table.metrics
    }


def summarised_scores(run: Run) -> dict[str, dict[str, float]]:
    """:func:`scores_of` many nodes: their mean and spread, and those of external ones under ``external``."""
    training, external = node_order([run])
    summaries = {}
    for metric, by_node in scores_of(run).items():
        found = {name: value for name, value in by_node.items() if name == MEAN}
        for prefix, nodes in (("", training), ("external/", external)):
            if values := [by_node[node] for node in nodes if node in by_node]:
                found |= {f"{prefix}{name}": float(summarise(values)) for name, summarise in SPREAD.items()}
        summaries[metric] = found
    return summaries


def overlay_images(run: Run) -> Iterator[tuple[str, int, bytes]]:
    """Centre, number of a held-out case, and its overlay as PNG; one case per centre that a report shows.

    Raises:
        DataError: an overlay cannot be read; names it.
    """
    scores = collect_scores(run.cases, run.means).cases
    for centre in choose_nodes([*run.overlays], scores, node_order([run])[1]):
        cases = run.overlays[centre]
        case = min(cases)
        overlay = figures.read_overlay(cases[case])
        yield centre, case, figures.as_png(figures.overlay_grid(centre, {f"case {case}": {run.strategy: overlay}}))


def fold_prefix(run: Mapping[str, Any], fold: Fold) -> str:
    """Prefix of a curve's name: empty, or the fold where ``run`` trains several."""
    return f"fold_{fold}/" if isinstance(run.get("fold"), list) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
