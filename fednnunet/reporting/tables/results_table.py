"""Means over cases, and the results table: strategies by nodes, DSC and HD95."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.evaluation.statistics import Interval
from fednnunet.exchange.messages import ENSEMBLE

STRATEGY_ORDER = ("local", "asym", "ffe", "centralized")
"""Order of the rows, as in the paper; others follow."""

ONE_EMPTY = ("prediction", "reference")
NOT_PRIVATE = "centralized"
"""Strategy that pools the images in one place: an upper reference, not a candidate for the best."""

External = Literal["mean", "best", "ensemble"]

MEAN = "mean"
SCORES = ["dsc", "hd95", "surface_dsc", "volume_error"]
SUMMARY_COLUMNS = ["strategy", "node", "fold", "n_cases", *SCORES, "n_empty"]
UNDEFINED, KEPT = "–", "kept"
STAR, DAGGER = "*", "†"
"""Marks of a value that differs significantly, and of a strategy with missing folds."""


def own_scores(cases: pd.DataFrame, external: External = "mean") -> pd.DataFrame:
    """Rows that the results table counts.

    A training centre's cases count with the centre's own model (or the one of all centres pooled). An external
    centre has no model: ``external`` says which models count there.

    Args:
        cases: columns of ``cases.csv``.
        external: ``mean``: every node's model, to be averaged. ``best``: the model of the node with the best mean DSC
            over its own held-out cases, for each strategy and seed; external scores play no part. ``ensemble``: the
            ensemble of all nodes' models.
    """
    own = (cases["model"] == cases["node"]) | (cases["model"] == POOLED_NODE)
    has_own = own.groupby([cases["strategy"], cases["node"]]).transform("any")
    if external == "ensemble":
        chosen = cases["model"] == ENSEMBLE
    elif external == "best":
        chosen = cases["model"] == _best_model(cases)
    else:
        chosen = cases["model"] != ENSEMBLE
    return cases[own | (~has_own & chosen)]


def _best_model(cases: pd.DataFrame) -> pd.Series:
    """Node whose model is best on its own cases, for each row's strategy and seed; empty if there is none."""
    keys = [key for key in ("strategy", "seed") if key in cases.columns]
    on_own_cases = cases[cases["model"] == cases["node"]].dropna(subset=["dsc"])
    of_case = on_own_cases.groupby([*keys, "node", "fold", "case"])["dsc"].mean()
    of_node = of_case.groupby([*keys, "node"]).mean().reset_index()
    best = of_node.loc[of_node.groupby(keys)["dsc"].idxmax(), [*keys, "node"]].rename(columns={"node": "best"})
    return cases[keys].merge(best, on=keys, how="left")["best"].fillna("").set_axis(cases.index)


def case_means(cases: pd.DataFrame, external: External = "mean") -> pd.DataFrame:
    """One row per case: scores averaged over its labels and models, leaving out undefined ones.

    The volume error counts by its absolute value. ``n_empty`` counts labels with exactly one empty mask.

    Args:
        cases: columns of ``cases.csv``.
        external: models that count at external centres, as in :func:`own_scores`.
    """
    return means_over_labels(own_scores(cases, external))


def means_over_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """The result of :func:`case_means` from the rows of :func:`own_scores`."""
    keys = [key for key in ("strategy", "node", "fold", "seed", "case") if key in rows.columns]
    rows = rows.assign(volume_error=rows["volume_error"].abs(), n_empty=rows["empty"].isin(ONE_EMPTY).astype(int))
    grouped = rows.groupby(keys, sort=False, as_index=False)
    return grouped.agg({**dict.fromkeys(SCORES, "mean"), "n_empty": "sum"})


def summarise(cases: pd.DataFrame, external: External = "mean") -> pd.DataFrame:
    """Mean over cases for each strategy, node and fold (and seed); a case's score is its mean over labels.

    Args:
        cases: columns of ``cases.csv``; NaN where a metric is undefined.
        external: models that count at external centres, as in :func:`own_scores`.

    Returns:
        Columns of ``summary.csv`` (and ``seed`` if ``cases`` has it); a metric that is undefined for all cases is NaN.
    """
    if cases.empty:
        return pd.DataFrame(columns=[*SUMMARY_COLUMNS, *(["seed"] if "seed" in cases.columns else [])])
    return fold_means(case_means(cases, external))


def fold_means(scores: pd.DataFrame) -> pd.DataFrame:
    """The result of :func:`summarise` from the rows of :func:`case_means`."""
    keys = [key for key in ("strategy", "node", "fold", "seed") if key in scores.columns]
    means = {score: (score, "mean") for score in SCORES}
    grouped = scores.groupby(keys, sort=False)
    summary = grouped.agg(n_cases=("case", "nunique"), **means, n_empty=("n_empty", "sum")).reset_index()
    return summary[[*SUMMARY_COLUMNS, *(key for key in keys if key == "seed")]]


def order_strategies(names: Iterable[str]) -> list[str]:
    """Strategies in the paper's order, then all others in their own order."""
    seen = list(dict.fromkeys(names))

    def place(name: str) -> int:
        base = name.split(" ")[0]
        return STRATEGY_ORDER.index(base) if base in STRATEGY_ORDER else len(STRATEGY_ORDER)

    return sorted(seen, key=place)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        column: column of ``summary.csv``.
        title: name with the unit and an arrow to the better direction.
        decimals: number of decimals shown.
        larger_is_better: whether larger values are better.
    """

    column: str
    title: str
    decimals: int
    larger_is_better: bool

    def show(self, value: float) -> str:
        """The value as text; a dash if undefined."""
        return UNDEFINED if np.isnan(value) else f"{value:.{self.decimals}f}"


@dataclass(frozen=True)
class ResultsTable:
    """Results of strategies (rows) at nodes (columns).

    Attributes:
        strategies: names of the rows.
        training: columns whose mean is the column ``mean``.
        external: columns of nodes without training cases, not part of the mean.
        distance_unit: ``mm`` or ``pixels``.
        metrics: DSC and HD95.
        values: metric column to values, rows ``strategies``, columns :attr:`columns`.
        intervals: metric column, strategy and column to the interval of the mean over cases.
        significant: strategies and columns whose DSC gets :data:`STAR`.
        incomplete: strategies that get :data:`DAGGER`.
        kept: strategies and columns whose scores stay at the node.
        notes: what a reader must know, one or two sentences each.
    """

    strategies: list[str]
    training: list[str]
    external: list[str]
    distance_unit: str
    metrics: list[Metric]
    values: dict[str, pd.DataFrame]
    intervals: Mapping[tuple[str, str, str], Interval] = field(default_factory=dict)
    significant: Set[tuple[str, str]] = frozenset()
    incomplete: Set[str] = frozenset()
    kept: Set[tuple[str, str]] = frozenset()
    notes: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Training nodes, their mean, external nodes."""
        return [*self.training, MEAN, *self.external]

    def row(self, strategy: str) -> str:
        """Name of a row."""
        return f"{strategy} {DAGGER}" if strategy in self.incomplete else strategy

    def cell(self, metric: Metric, strategy: str, column: str) -> str:
        """One value as text."""
        value = self.values[metric.column].loc[strategy, column]
        return KEPT if np.isnan(value) and (strategy, column) in self.kept else metric.show(value)

    def star(self, metric: Metric, strategy: str, column: str) -> str:
        """The mark of significance, which only DSC can have; empty if there is none."""
        return STAR if metric.column == "dsc" and (strategy, column) in self.significant else ""

    def interval(self, metric: Metric, strategy: str, column: str) -> str:
        """Interval of a mean as text; empty if there is none."""
        interval = self.intervals.get((metric.column, strategy, column))
        if interval is None or np.isnan(interval.low):
            return ""
        return f"{metric.show(interval.low)}–{metric.show(interval.high)}"

    def is_best(self, metric: Metric, strategy: str, column: str) -> bool:
        """Whether no other strategy that keeps images at their nodes shows a better value (ties: all)."""
        values = self.values[metric.column][column].round(metric.decimals)
        rivals = values[[name for name in self.strategies if name.split(" ")[0] != NOT_PRIVATE]].dropna()
        if strategy not in rivals.index or len(rivals) < 2:
            return False
        return bool(rivals[strategy] == (rivals.max() if metric.larger_is_better else rivals.min()))

    def as_rich(self) -> Table:
        """Table for the terminal, with the best values in bold."""
        table = Table(show_edge=False, pad_edge=False, header_style="bold", row_styles=[""])
        table.add_column("")
        table.add_column("strategy", no_wrap=True)
        for column in self.columns:
            title = Text(column, style="italic" if column == MEAN else "")
            if column in self.external:
                title.append("\nexternal", style="dim not bold")
            table.add_column(title, justify="right", no_wrap=True)
        for metric in self.metrics:
            for row, strategy in enumerate(self.strategies):
                cells = [
                    Text(
                        self.cell(metric, strategy, column) + self.star(metric, strategy, column),
                        style="bold green" if self.is_best(metric, strategy, column) else "",
                    )
                    for column in self.columns
                ]
                last = row == len(self.strategies) - 1
                table.add_row(metric.title if row == 0 else "", self.row(strategy), *cells, end_section=last)
        return table

    def as_text(self) -> str:
        """Table and notes as text for a file or a pipe, without colours and as wide as necessary."""
        out = io.StringIO()
        console = Console(file=out, width=500, no_color=True, force_terminal=False)
        console.print(self.as_rich())
        return "\n".join([*(line.rstrip() for line in out.getvalue().splitlines()), *self.notes]) + "\n"

    def as_markdown(self) -> str:
        """Table and notes as Markdown, with the best values in bold."""
        titles = [f"{name} (external)" if name in self.external else name for name in self.columns]
        lines = [
            f"| | strategy | {' | '.join(titles)} |",
            f"| --- | --- |{' ---: |' * len(titles)}",
        ]
        for metric in self.metrics:
            for row, strategy in enumerate(self.strategies):
                cells = []
                for column in self.columns:
                    text = self.cell(metric, strategy, column)
                    best = f"**{text}**" if self.is_best(metric, strategy, column) else text
                    cells.append(best + self.star(metric, strategy, column).replace("*", r"\*"))
                lines.append(f"| {metric.title if row == 0 else ''} | {self.row(strategy)} | {' | '.join(cells)} |")
        lines += [text for note in self.notes for text in ("", note.replace("*", r"\*"))]
        return "\n".join(lines) + "\n"


def results_table(
    scores: pd.DataFrame,
    node_order: Sequence[str],
    external: Sequence[str] = (),
    distance_unit: str = "mm",
    told: pd.DataFrame | None = None,
    kept: Set[tuple[str, str]] = frozenset(),
) -> ResultsTable:
    """Results table: means over a node's held-out cases of all folds, as in nnU-Net's cross-validation.

    A case of several seeds (or, at an external centre, folds) counts once, with its mean. The column ``mean`` is over
    training nodes only, and is undefined if one of them has no value.

    Args:
        scores: rows of :func:`case_means`.
        node_order: training nodes.
        external: nodes without training cases.
        distance_unit: ``mm`` or ``pixels``.
        told: means of nodes that tell no cases, by strategy and node (index); they take the place of ``scores``.
        kept: strategies and nodes that tell nothing.
    """
    metrics = [
        Metric("dsc", "DSC ↑", 3, larger_is_better=True),
        Metric("hd95", f"HD95 ({distance_unit}) ↓", 2, larger_is_better=False),
    ]
    means = pd.DataFrame() if told is None else told
    strategies = order_strategies([*scores["strategy"], *(strategy for strategy, _ in (*means.index, *kept))])
    training, outside = list(node_order), list(external)
    columns = [metric.column for metric in metrics]
    numbers = scores.assign(**{column: pd.to_numeric(scores[column]) for column in columns})
    of_cases = numbers.groupby(["strategy", "node", "case"])[columns].mean()
    of_nodes = of_cases.groupby(level=["strategy", "node"]).mean()
    if len(means):
        of_nodes = pd.concat([of_nodes[~of_nodes.index.isin(means.index)], means[columns]])
    values: dict[str, pd.DataFrame] = {}
    for column in columns:
        by_node = of_nodes[column].unstack("node")
        frame = by_node.reindex(index=strategies, columns=[*training, *outside]).astype(float)
        frame.insert(len(training), MEAN, frame[training].mean(axis=1, skipna=False))
        values[column] = frame
    return ResultsTable(strategies, training, outside, distance_unit, metrics, values, kept=kept)
