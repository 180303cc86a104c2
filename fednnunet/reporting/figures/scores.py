"""Scores of held-out cases: boxes per centre, differences of strategies, every model at every centre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fednnunet.evaluation.statistics import Interval
from fednnunet.listing import MOST_NODES
from fednnunet.reporting.figures.many_nodes import cross_centre_map
from fednnunet.reporting.figures.style import INK, clean, draw_box, legend, new_figure, strategy_colours
from fednnunet.reporting.tables.results_table import order_strategies


def case_scores(scores: pd.DataFrame, training: Sequence[str], external: Sequence[str], distance_unit: str) -> Figure:
    """Box plots of DSC and HD95, strategies side by side at each centre.

    A box holds the middle half of the cases, its line is the median, its whiskers reach at most 1.5 times the box's
    length; a dot is a case, a diamond the mean. Few cases get no box.

    Args:
        scores: one row per case (:func:`~fednnunet.reporting.tables.results_table.case_means`).
        training: nodes with training cases.
        external: nodes without training cases, drawn apart.
        distance_unit: ``mm`` or ``pixels``.
    """
    strategies = order_strategies(scores["strategy"])
    colours = strategy_colours(strategies)
    nodes = [*training, *external]
    centres = {name: i + (0.15 if name in external else 0.0) for i, name in enumerate(nodes)}
    width = 0.84 / len(strategies)
    figure = new_figure((max(6.0, 0.9 + 0.3 * len(nodes) * (0.6 + len(strategies))), 6.4))
    for axes, (column, title) in zip(
        figure.subplots(2, 1, sharex=True),
        {"dsc": "DSC  (higher is better)", "hd95": f"HD95 in {distance_unit}  (lower is better)"}.items(),
        strict=True,
    ):
        clean(axes)
        axes.grid(visible=False, axis="x")
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        for place, strategy in enumerate(strategies):
            for node in nodes:
                values = scores[(scores["strategy"] == strategy) & (scores["node"] == node)][column].dropna()
                x = centres[node] + (place - (len(strategies) - 1) / 2) * width
                draw_box(axes, values.to_numpy(), x, width, colours[strategy])
        if external:
            axes.axvspan(len(training) - 0.43, len(nodes) - 0.27, color="#f1f3f5", zorder=-5, lw=0)
        if column == "dsc":
            axes.set_ylim(-0.02, 1.02)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlim(-0.55, list(centres.values())[-1] + 0.55)
        axes.set_xticks(list(centres.values()), [f"{name}\n(external)" if name in external else name for name in nodes])
        axes.tick_params(axis="x", length=0)
    legend(figure, [Patch(color=colours[name], alpha=0.75, lw=0, label=name) for name in strategies])
    return figure


def forest(
    intervals: Mapping[str, Mapping[str, Interval]],
    title: str,
    colours: Mapping[str, str],
    values: Mapping[str, Sequence[float]] | None = None,
    width: float = 7.0,
) -> Figure:
    """Mean differences with their confidence intervals, one below the other, and a line at no difference.

    Args:
        intervals: row to strategy to mean and interval; strategies of a row are drawn close together.
        title: title of the axis.
        colours: strategy to colour; a legend names strategies if rows have several.
        values: row to the values behind it, drawn as dots.
        width: width of the figure in inches.
    """
    strategies = list(dict.fromkeys(strategy for row in intervals.values() for strategy in row))
    several = any(len(row) > 1 for row in intervals.values())
    figure = new_figure((width, 0.9 + 0.36 * len(intervals) + 0.17 * len(intervals) * (len(strategies) - 1) * several))
    axes: Axes = figure.subplots()
    clean(axes)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color="#9aa5b1", lw=1, ls="--")
    for place, (row, of_strategies) in enumerate(intervals.items()):
        for strategy, interval in of_strategies.items():
            y = place + (0.7 * ((strategies.index(strategy) + 0.5) / len(strategies) - 0.5) if several else 0.0)
            dots = (values or {}).get(row, [])
            axes.plot(dots, [y] * len(dots), "o", ms=4, mfc="none", mec=colours[strategy], alpha=0.6)
            axes.plot([interval.low, interval.high], [y, y], color=colours[strategy], lw=2.2, solid_capstyle="butt")
            axes.plot(interval.mean, y, "D", ms=5.5, color=colours[strategy])
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set_ylim(len(intervals) - 0.45, -0.55)
    axes.set_xlabel(title)
    if several:
        legend(figure, [Line2D([], [], color=colours[name], lw=2.5, label=name) for name in strategies])
    return figure


def cross_centre(
    cases: pd.DataFrame, training: Sequence[str], external: Sequence[str], told: pd.DataFrame | None = None
) -> Figure | None:
    """Mean DSC of each node's model (rows) on each centre's held-out cases (columns), one panel per strategy.

    As in the paper's Fig. 4; of more than :data:`~fednnunet.listing.MOST_NODES` nodes in colours alone.

    Args:
        cases: columns of ``cases.csv``.
        training: nodes with training cases.
        external: nodes without training cases.
        told: means over cases and labels, which nodes tell in place of their cases; the same columns.

    Returns:
        None if no model was scored at another training centre.
    """
    keys = [key for key in ("fold", "seed", "case") if key in cases.columns]
    means = cases.groupby(["strategy", "model", "node", *keys])["dsc"].mean().groupby(level=[0, 1, 2]).mean()
    named = list(cases["strategy"])
    if told is not None and len(told):
        of_nodes = told.groupby(["strategy", "model", "node"])["dsc"].mean()
        means = pd.concat([means[~means.index.isin(of_nodes.index)], of_nodes])
        named += list(told["strategy"])
    elsewhere = {name for name, model, node in means.index if model != node and {model, node} <= {*training}}
    strategies = [name for name in order_strategies(named) if name in elsewhere]
    if not strategies:
        return None
    columns = [*training, *external]
    if len(columns) > MOST_NODES:
        tables = {strategy: means[strategy].unstack("node") for strategy in strategies}
        return cross_centre_map(tables, training, external, strategies)
    width, height = 0.55 * len(columns) + 0.9, 1.5 + 0.5 * len(training)
    across = max(1, min(len(strategies), int(10 / width)))
    down = -(-len(strategies) // across)
    figure = new_figure((1.2 + width * across, height * down))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(strategies) :]:
        axes.set_axis_off()
    for place, (axes, strategy) in enumerate(zip(panels, strategies, strict=False)):
        matrix = means[strategy].unstack("node").reindex(index=training, columns=columns)
        axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (row, column), value in np.ndenumerate(matrix.to_numpy()):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if value < 0.6 else INK)
        first = place % across == 0
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(training)), training if first else [], fontsize=8)
        axes.set_title(strategy, fontsize=10, fontweight="bold", color=INK)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        if external:
            axes.axvline(len(training) - 0.5, color="white", lw=3)
        if first:
            axes.set_ylabel("model of", color=INK)
        axes.set_xlabel("cases of", color=INK)
    return figure
