"""Scores label by label, where nodes have annotated different structures: a mean over labels hides which they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fednnunet.listing import MOST_NODES, join_all
from fednnunet.reporting.scores import NO_CASE
from fednnunet.reporting.tables.results_table import (
    KEPT,
    UNDEFINED,
    External,
    Metric,
    ResultsTable,
    order_strategies,
    own_scores,
)

NOT_ANNOTATED = "not annotated"
KEYS = ["strategy", "node", "label"]


@dataclass(frozen=True)
class LabelTable:
    """Means of each label over the nodes that have annotated it.

    Attributes:
        titles: of the columns: metric, label, strategy, then nodes and their mean; of many nodes, mean and ends.
        rows: cells as text, with the number of cases or nodes that a mean is over.
        annotated: node to its labels.
    """

    titles: list[str]
    rows: list[list[str]]
    annotated: dict[str, list[str]]

    @property
    def note(self) -> str:
        """What a reader of the table over labels must know."""
        if len(self.annotated) > MOST_NODES:
            whose = f"{len(self.annotated)} nodes; which one has which, says cases.csv"
        else:
            whose = "; ".join(f"{node} {join_all(labels)}" for node, labels in self.annotated.items())
        return (
            f"Nodes have annotated different structures ({whose}): each value is over those of its node, and what a "
            "model segments beside them is not scored."
        )

    def as_markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.titles, ["---"] * 3 + ["---:"] * (len(self.titles) - 3), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def label_table(
    cases: pd.DataFrame, means: pd.DataFrame, table: ResultsTable, external: External = "mean"
) -> LabelTable | None:
    """The scores of each label; None where all nodes were scored by the same.

    A case of several seeds, folds or models counts once, with its mean.

    Args:
        cases: rows of cases of ``cases.csv``.
        means: its rows of means, and of scores that are kept.
        table: the table over labels, with the order of nodes.
        external: models that count at external nodes, as in :func:`own_scores`.
    """
    told = means[(means["label"] != "") & (means["n_cases"] > 0)].assign(case=NO_CASE)
    filled = [rows for rows in (cases, told) if len(rows)]
    if not filled:
        return None
    scored = own_scores(pd.concat(filled, ignore_index=True), external)
    order = [*table.training, *table.external]
    of_node = {str(node): sorted(set(labels)) for node, labels in scored.groupby("node")["label"]}
    annotated = {node: of_node[node] for node in order if node in of_node}
    everything = sorted(set().union(*annotated.values()))
    if all(labels == everything for labels in annotated.values()):
        return None
    found = _means(scored, [metric.column for metric in table.metrics])
    strategies = order_strategies(scored["strategy"])
    many = len(order) > MOST_NODES
    rows = []
    for metric in table.metrics:
        for label in everything:
            for strategy in strategies:
                values = {
                    node: (found[key][metric.column], int(found[key][f"n_{metric.column}"]))
                    for node in order
                    if (key := (strategy, node, label)) in found
                }
                cells = (
                    _spread(metric, values, table.training)
                    if many
                    else _one_by_one(metric, values, table, strategy, {n for n in annotated if label in annotated[n]})
                )
                rows.append([metric.title, label, strategy, *cells])
    nodes = (
        ["mean (training nodes)", "worst", "best"]
        if many
        else [
            *(f"{node} (cases)" for node in table.training),
            "mean (nodes)",
            *(f"{node}, external (cases)" for node in table.external),
        ]
    )
    return LabelTable(["", "label", "strategy", *nodes], rows, annotated)


Values = dict[str, tuple[float, int]]
"""Node to a mean over its cases, and how many these are."""


def _means(scored: pd.DataFrame, columns: Sequence[str]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Strategy, node and label to the mean over cases of each metric and, as ``n_…``, their number."""
    is_mean = scored["case"] == NO_CASE
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    of_cases = scored[~is_mean].groupby([*KEYS, "case"])[list(columns)].mean()
    for key, rows in of_cases.groupby(level=KEYS):
        found[key] = {column: rows[column].mean() for column in columns}
        found[key] |= {f"n_{column}": int(rows[column].count()) for column in columns}
    for key, rows in scored[is_mean].groupby(KEYS):
        for column in columns:
            defined = rows.dropna(subset=[column])
            number = int(defined.groupby("fold")["n_cases"].first().sum())
            mean = (
                (defined[column] * defined["n_cases"]).sum() / defined["n_cases"].sum()
                if len(defined)
                else float("nan")
            )
            found.setdefault(key, {}).update({column: float(mean), f"n_{column}": number})
    return found


def _one_by_one(metric: Metric, values: Values, table: ResultsTable, strategy: str, annotating: set[str]) -> list[str]:
    def cell(node: str) -> str:
        if node in values:
            value, number = values[node]
            return f"{metric.show(value)} ({number})" if number else UNDEFINED
        if (strategy, node) in table.kept:
            return KEPT
        return UNDEFINED if node in annotating else NOT_ANNOTATED

    return [*map(cell, table.training), _mean(metric, values, table.training), *map(cell, table.external)]


def _spread(metric: Metric, values: Values, training: Sequence[str]) -> list[str]:
    known = [value for node, (value, number) in values.items() if node in training and number]
    ends = sorted(known, reverse=not metric.larger_is_better)
    return [_mean(metric, values, training), *((metric.show(end) for end in (ends[0], ends[-1])) if ends else "––")]


def _mean(metric: Metric, values: Values, training: Sequence[str]) -> str:
    known = [values[node][0] for node in training if node in values and values[node][1]]
    return f"{metric.show(sum(known) / len(known))} ({len(known)})" if known else UNDEFINED
