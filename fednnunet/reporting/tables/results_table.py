"""Means over cases, and the table of results: set-ups by nodes, DSC and HD95."""

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

from fednnunet.config.run import POOLED_NODE
from fednnunet.evaluation.statistics import Interval
from fednnunet.exchange.messages import ENSEMBLE

SETUP_ORDER = ("local", "asym", "ffe", "centralized")
"""Rows of the table, as in the paper; others follow."""

ONE_EMPTY = ("prediction", "reference")
NOT_PRIVATE = "centralized"
"""Pools the images in one place: an upper reference, no candidate for the best."""

External = Literal["mean", "best", "ensemble"]

MEAN = "mean"
SCORES = ["dsc", "hd95", "surface_dsc", "volume_error"]
SUMMARY_COLUMNS = ["strategy", "node", "fold", "n_cases", *SCORES, "n_empty"]
UNDEFINED = "–"
STAR, DAGGER = "*", "†"
"""Behind a value that differs significantly, behind a set-up without some folds."""


def own_scores(cases: pd.DataFrame, external: External = "mean") -> pd.DataFrame:
    """Rows that the table of results counts.

    A training centre's cases count with the centre's own model (or the one of all centres pooled). An external
    centre has none: ``external`` says which models count there.

    Args:
        cases: columns of ``cases.csv``.
        external: ``mean``: every node's model, to be averaged. ``best``: the model of the node with the best mean DSC
            over its own held-out cases, of a set-up and seed; external scores have no say. ``ensemble``: the ensemble
            of all nodes' models.
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
    """For each row the node whose model is best at home, in the row's set-up and seed; empty where no model is."""
    keys = [key for key in ("strategy", "seed") if key in cases.columns]
    at_home = cases[cases["model"] == cases["node"]].dropna(subset=["dsc"])
    of_case = at_home.groupby([*keys, "node", "fold", "case"])["dsc"].mean()
    of_node = of_case.groupby([*keys, "node"]).mean().reset_index()
    best = of_node.loc[of_node.groupby(keys)["dsc"].idxmax(), [*keys, "node"]].rename(columns={"node": "best"})
    return cases[keys].merge(best, on=keys, how="left")["best"].fillna("").set_axis(cases.index)


def case_means(cases: pd.DataFrame, external: External = "mean") -> pd.DataFrame:
    """One row per case: scores averaged over its labels and models, leaving out those that are not defined.

    The volume error is taken by its size. ``n_empty`` counts labels of which just one mask was empty.

    Args:
        cases: columns of ``cases.csv``.
        external: which models count at external centres, as in :func:`own_scores`.
    """
    rows = own_scores(cases, external)
    keys = [key for key in ("strategy", "node", "fold", "seed", "case") if key in rows.columns]
    rows = rows.assign(volume_error=rows["volume_error"].abs(), n_empty=rows["empty"].isin(ONE_EMPTY).astype(int))
    grouped = rows.groupby(keys, sort=False, as_index=False)
    return grouped.agg({**dict.fromkeys(SCORES, "mean"), "n_empty": "sum"})


def summarise(cases: pd.DataFrame, external: External = "mean") -> pd.DataFrame:
    """Mean over cases of the case's mean over labels, for each strategy, node and fold (and seed).

    Args:
        cases: columns of ``cases.csv``; NaN where a metric is not defined.
        external: which models count at external centres, as in :func:`own_scores`.

    Returns:
        Columns of ``summary.csv`` (and ``seed`` where ``cases`` has it); a metric that is defined for no
        case is NaN.
    """
    if cases.empty:
        return pd.DataFrame(columns=[*SUMMARY_COLUMNS, *(["seed"] if "seed" in cases.columns else [])])
    return fold_means(case_means(cases, external))


def fold_means(scores: pd.DataFrame) -> pd.DataFrame:
    """What :func:`summarise` returns, from the rows of :func:`case_means`."""
    keys = [key for key in ("strategy", "node", "fold", "seed") if key in scores.columns]
    means = {score: (score, "mean") for score in SCORES}
    grouped = scores.groupby(keys, sort=False)
    summary = grouped.agg(n_cases=("case", "nunique"), **means, n_empty=("n_empty", "sum")).reset_index()
    return summary[[*SUMMARY_COLUMNS, *(key for key in keys if key == "seed")]]


def order_setups(names: Iterable[str]) -> list[str]:
    """Set-ups as the paper lists them, then all others in their own order."""
    seen = list(dict.fromkeys(names))

    def place(name: str) -> int:
        base = name.split(" ")[0]
        return SETUP_ORDER.index(base) if base in SETUP_ORDER else len(SETUP_ORDER)

    return sorted(seen, key=place)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        column: in ``summary.csv``.
        title: with the unit and the direction that is better.
        decimals: shown.
        larger_is_better: for choosing the best.
    """

    column: str
    title: str
    decimals: int
    larger_is_better: bool

    def show(self, value: float) -> str:
        """The value as text, a dash where it is not defined."""
        return UNDEFINED if np.isnan(value) else f"{value:.{self.decimals}f}"


@dataclass(frozen=True)
class ResultsTable:
    """Results of set-ups (rows) at nodes (columns).

    Attributes:
        setups: rows.
        training: columns whose mean is the column ``mean``.
        external: columns of nodes without training cases, apart from the mean.
        hd95_unit: ``mm`` or ``pixels``.
        metrics: DSC and HD95.
        values: metric column to values, rows ``setups``, columns :attr:`columns`.
        intervals: metric column, set-up and column to the interval of the mean over cases.
        significant: set-up and column of the DSC that get :data:`STAR`.
        incomplete: set-ups that get :data:`DAGGER`.
        notes: what a reader must know, one sentence or two each.
    """

    setups: list[str]
    training: list[str]
    external: list[str]
    hd95_unit: str
    metrics: list[Metric]
    values: dict[str, pd.DataFrame]
    intervals: Mapping[tuple[str, str, str], Interval] = field(default_factory=dict)
    significant: Set[tuple[str, str]] = frozenset()
    incomplete: Set[str] = frozenset()
    notes: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Training nodes, their mean, external nodes."""
        return [*self.training, MEAN, *self.external]

    def row(self, setup: str) -> str:
        """Name of a row."""
        return f"{setup} {DAGGER}" if setup in self.incomplete else setup

    def cell(self, metric: Metric, setup: str, column: str) -> str:
        """One value as text."""
        return metric.show(self.values[metric.column].loc[setup, column])

    def star(self, metric: Metric, setup: str, column: str) -> str:
        """The mark of significance, which tests of DSC give; empty for most."""
        return STAR if metric.column == "dsc" and (setup, column) in self.significant else ""

    def interval(self, metric: Metric, setup: str, column: str) -> str:
        """Interval of a mean as text; empty where there is none."""
        interval = self.intervals.get((metric.column, setup, column))
        if interval is None or np.isnan(interval.low):
            return ""
        return f"{metric.show(interval.low)}–{metric.show(interval.high)}"

    def is_best(self, metric: Metric, setup: str, column: str) -> bool:
        """Whether no other set-up that keeps images at their nodes shows a better value (ties: all)."""
        values = self.values[metric.column][column].round(metric.decimals)
        rivals = values[[name for name in self.setups if name.split(" ")[0] != NOT_PRIVATE]].dropna()
        if setup not in rivals.index or len(rivals) < 2:
            return False
        return bool(rivals[setup] == (rivals.max() if metric.larger_is_better else rivals.min()))

    def as_rich(self) -> Table:
        """For the terminal; the best in bold."""
        table = Table(show_edge=False, pad_edge=False, header_style="bold", row_styles=[""])
        table.add_column("")
        table.add_column("set-up", no_wrap=True)
        for column in self.columns:
            title = Text(column, style="italic" if column == MEAN else "")
            if column in self.external:
                title.append("\nexternal", style="dim not bold")
            table.add_column(title, justify="right", no_wrap=True)
        for metric in self.metrics:
            for row, setup in enumerate(self.setups):
                cells = [
                    Text(
                        self.cell(metric, setup, column) + self.star(metric, setup, column),
                        style="bold green" if self.is_best(metric, setup, column) else "",
                    )
                    for column in self.columns
                ]
                last = row == len(self.setups) - 1
                table.add_row(metric.title if row == 0 else "", self.row(setup), *cells, end_section=last)
        return table

    def as_text(self) -> str:
        """For a file or a pipe, with the notes: no colours, as wide as it needs to be."""
        out = io.StringIO()
        console = Console(file=out, width=500, no_color=True, force_terminal=False)
        console.print(self.as_rich())
        return "\n".join([*(line.rstrip() for line in out.getvalue().splitlines()), *self.notes]) + "\n"

    def as_markdown(self) -> str:
        """For a README, with the notes; the best in bold."""
        titles = [f"{name} (external)" if name in self.external else name for name in self.columns]
        lines = [
            f"| | set-up | {' | '.join(titles)} |",
            f"| --- | --- |{' ---: |' * len(titles)}",
        ]
        for metric in self.metrics:
            for row, setup in enumerate(self.setups):
                cells = []
                for column in self.columns:
                    text = self.cell(metric, setup, column)
                    best = f"**{text}**" if self.is_best(metric, setup, column) else text
                    cells.append(best + self.star(metric, setup, column).replace("*", r"\*"))
                lines.append(f"| {metric.title if row == 0 else ''} | {self.row(setup)} | {' | '.join(cells)} |")
        lines += [text for note in self.notes for text in ("", note.replace("*", r"\*"))]
        return "\n".join(lines) + "\n"


def results_table(
    scores: pd.DataFrame, node_order: Sequence[str], external: Sequence[str] = (), hd95_unit: str = "mm"
) -> ResultsTable:
    """Table of results: means over a node's held-out cases of all folds, as nnU-Net's cross-validation takes them.

    A case of several seeds (or, at an external centre, folds) counts once, with its mean. The column ``mean`` goes over
    training nodes only, and is not defined where one of them has no value.

    Args:
        scores: rows of :func:`case_means`.
        node_order: training nodes.
        external: nodes without training cases.
        hd95_unit: ``mm`` or ``pixels``.
    """
    metrics = [
        Metric("dsc", "DSC ↑", 3, larger_is_better=True),
        Metric("hd95", f"HD95 ({hd95_unit}) ↓", 2, larger_is_better=False),
    ]
    setups = order_setups(scores["strategy"])
    training, outside = list(node_order), list(external)
    columns = [metric.column for metric in metrics]
    numbers = scores.assign(**{column: pd.to_numeric(scores[column]) for column in columns})
    of_cases = numbers.groupby(["strategy", "node", "case"])[columns].mean()
    of_nodes = of_cases.groupby(level=["strategy", "node"]).mean()
    values: dict[str, pd.DataFrame] = {}
    for column in columns:
        by_node = of_nodes[column].unstack("node")
        frame = by_node.reindex(index=setups, columns=[*training, *outside]).astype(float)
        frame.insert(len(training), MEAN, frame[training].mean(axis=1, skipna=False))
        values[column] = frame
    return ResultsTable(setups, training, outside, hd95_unit, metrics, values)
