"""Learning curves, time and traffic over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fednnunet.listing import MOST_NODES
from fednnunet.reporting.figures.many_nodes import band_handles, draw_band
from fednnunet.reporting.figures.style import (
    INK,
    NODE_COLOURS,
    POOLED_COLOUR,
    clean,
    legend,
    new_figure,
    node_styles,
    strategy_colours,
)
from fednnunet.reporting.tables.results_table import order_strategies

CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "pseudo_dice": "pseudo-Dice"}
MB = 1e6
BAND_COLOUR = NODE_COLOURS[0]
ALL_NODES = "mean of the nodes"
"""Where no figure of a single one is known."""


def learning_curves(rounds: pd.DataFrame, nodes: Sequence[str]) -> Figure:
    """Losses and pseudo-Dice of every node over rounds; one column per strategy.

    With several folds or seeds the line is their mean and the band their range. Of more than
    :data:`~fednnunet.listing.MOST_NODES` nodes, the line is their median and the bands are their quantiles.

    Args:
        rounds: columns of ``rounds.csv``; where these lack figures of single nodes, rows of :data:`ALL_NODES`.
        nodes: nodes in the order of the legend; others in ``rounds`` follow.
    """
    strategies = order_strategies(rounds["strategy"])
    styles = node_styles(nodes) | {name: (POOLED_COLOUR, "-") for name in rounds["node"].unique() if name not in nodes}
    many = len(nodes) > MOST_NODES
    if many:
        styles = {name: style for name, style in styles.items() if name not in nodes}
    single = len(strategies) == 1
    shape = (1, len(CURVES)) if single else (len(CURVES), len(strategies))
    size = (10.5, 3.3) if single else (0.8 + 2.75 * len(strategies), 7.0)
    figure = new_figure(size)
    grid = figure.subplots(*shape, squeeze=False, sharex=True, sharey=False if single else "row")
    for row, (column, title) in enumerate(CURVES.items()):
        for place, strategy in enumerate(strategies):
            axes: Axes = grid[0][row] if single else grid[row][place]
            clean(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            if single:
                axes.set_title(title, fontsize=10, color=INK)
            else:
                if row == 0:
                    axes.set_title(strategy, fontsize=10, fontweight="bold", color=INK)
                if place == 0:
                    axes.set_ylabel(title)
            if single or row == len(CURVES) - 1:
                axes.set_xlabel("round")
            if column == "pseudo_dice":
                axes.set_ylim(0, 1)
            chosen = rounds[rounds["strategy"] == strategy]
            _draw_nodes(axes, chosen, column, styles)
            if many:
                draw_band(axes, chosen[chosen["node"].isin(nodes)], column, BAND_COLOUR)
    drawn = [name for name in styles if rounds.loc[rounds["node"] == name, list(CURVES)].notna().any(axis=None)]
    handles = [Line2D([], [], color=styles[name][0], ls=styles[name][1], lw=2, label=name) for name in drawn]
    legend(figure, [*(band_handles(BAND_COLOUR) if many else []), *handles])
    return figure


def _draw_nodes(axes: Axes, rounds: pd.DataFrame, column: str, styles: Mapping[str, tuple[str, str]]) -> None:
    for node, (colour, dashes) in styles.items():
        values = rounds[rounds["node"] == node].dropna(subset=[column]).groupby("round")[column]
        over = values.agg(["mean", "min", "max"])
        if over.empty:
            continue
        marker = "o" if len(over) < 4 else None
        axes.plot(over.index, over["mean"], color=colour, ls=dashes, lw=1.6, marker=marker, ms=4)
        if (over["max"] > over["min"]).any():
            axes.fill_between(over.index, over["min"], over["max"], color=colour, alpha=0.15, lw=0)


def round_costs(rounds: pd.DataFrame) -> Figure:
    """Time and traffic of a round: training and exchange at the slowest node, megabytes of all nodes.

    With several folds or seeds the line is their mean.

    Args:
        rounds: columns of ``rounds.csv``, with ``fold`` and ``seed`` if there are several.
    """
    strategies = order_strategies(rounds["strategy"])
    colours = strategy_colours(strategies)
    figure = new_figure((10.5, 3.4))
    time_axes, bytes_axes = figure.subplots(1, 2)
    for axes, title, columns, gather in (
        (time_axes, "seconds per round, slowest node", ("seconds_train", "seconds_exchange"), "max"),
        (bytes_axes, "MB per round, all nodes", ("bytes_up", "bytes_down"), "sum"),
    ):
        clean(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        for strategy in strategies:
            chosen = rounds[rounds["strategy"] == strategy]
            keys = [key for key in ("seed", "fold", "round") if key in chosen.columns]
            by_round = chosen.groupby(keys)[list(columns)].agg(gather).groupby("round").mean()
            scale = MB if gather == "sum" else 1.0
            for column, dashes in zip(columns, ("-", "--"), strict=True):
                axes.plot(by_round.index, by_round[column] / scale, color=colours[strategy], ls=dashes, lw=1.6)
        axes.set_ylim(bottom=0)
        solid, dashed = columns
        axes.legend(
            handles=[
                Line2D([], [], color=INK, ls="-", label=solid.rpartition("_")[2]),
                Line2D([], [], color=INK, ls="--", label=dashed.rpartition("_")[2]),
            ],
            frameon=False,
            fontsize=8,
        )
    legend(figure, [Line2D([], [], color=colours[name], lw=2.5, label=name) for name in strategies])
    return figure
