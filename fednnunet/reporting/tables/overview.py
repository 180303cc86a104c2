"""The results table of many nodes: their spread in place of a column per node, and a row per node to look one up."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from fednnunet.listing import MOST_NODES
from fednnunet.reporting.tables.results_table import MEAN, Metric, ResultsTable

QUANTILES = {"worst": 0.0, "worst tenth": 0.1, "median": 0.5, "best tenth": 0.9, "best": 1.0}
"""Columns of the overview, and the quantile of the training nodes' values that each holds, from the worst upwards."""


def has_many_nodes(table: ResultsTable) -> bool:
    """Whether the table has more nodes than are shown one by one."""
    return len(table.training) + len(table.external) > MOST_NODES


def overview(table: ResultsTable) -> ResultsTable:
    """The table itself up to :data:`~fednnunet.listing.MOST_NODES` nodes; of more, their spread.

    Columns are quantiles of the training nodes' values, their mean, and the worst and the mean of the external nodes.
    Notes name the ends.
    """
    if not has_many_nodes(table):
        return table
    number = len(table.external)
    outside = {f"worst of {number}": 0.0, f"mean of {number}": None} if number else {}
    values: dict[str, pd.DataFrame] = {}
    ends: dict[str, list[str]] = {}
    for metric in table.metrics:
        whole = table.values[metric.column]
        inside = whole[table.training]
        columns = {name: inside.quantile(_at(q, metric.larger_is_better), axis=1) for name, q in QUANTILES.items()}
        columns[MEAN] = whole[MEAN]
        for name, q in outside.items():
            of_external = whole[table.external]
            columns[name] = (
                of_external.mean(axis=1) if q is None else of_external.quantile(_at(q, metric.larger_is_better), axis=1)
            )
        values[metric.column] = pd.DataFrame(columns)
        for strategy in table.strategies:
            known = inside.loc[strategy].dropna().sort_values(ascending=metric.larger_is_better)
            if len(known):
                text = f"{metric.column.upper()} from {known.index[0]} to {known.index[-1]}"
                ends.setdefault(strategy, []).append(text)
    notes = [f"{strategy}: worst to best {', '.join(texts)}." for strategy, texts in ends.items()]
    return replace(
        table,
        training=list(QUANTILES),
        external=list(outside),
        values=values,
        significant={(strategy, column) for strategy, column in table.significant if column == MEAN},
        intervals={key: interval for key, interval in table.intervals.items() if key[2] == MEAN},
        kept=set(),
        notes=[*table.notes, *notes],
    )


def node_rows(table: ResultsTable) -> list[list[str]]:
    """A row per node: its name, then a value per strategy and metric, with its mark of significance."""
    return [
        [
            f"{node} (external)" if node in table.external else node,
            *(
                table.cell(metric, strategy, node) + table.star(metric, strategy, node)
                for strategy, metric in _pairs(table)
            ),
        ]
        for node in (*table.training, *table.external)
    ]


def node_titles(table: ResultsTable) -> list[str]:
    """Titles of the columns of :func:`node_rows`."""
    return ["node", *(f"{strategy} {metric.title}" for strategy, metric in _pairs(table))]


def nodes_as_markdown(table: ResultsTable) -> str:
    """:func:`node_rows` as Markdown."""
    titles = node_titles(table)
    lines = [titles, ["---", *(" ---: " for _ in titles[1:])], *node_rows(table)]
    return "\n".join(f"| {' | '.join(cells)} |".replace("*", r"\*") for cells in lines) + "\n"


def _pairs(table: ResultsTable) -> list[tuple[str, Metric]]:
    return [(strategy, metric) for metric in table.metrics for strategy in table.strategies]


def _at(quantile: float, larger_is_better: bool) -> float:
    return quantile if larger_is_better else 1 - quantile
