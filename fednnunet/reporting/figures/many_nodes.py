"""Figures of more nodes than can be told apart: medians and bands, sorted means, a map; few nodes by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fednnunet.evaluation.statistics import Interval
from fednnunet.reporting.figures.style import INK, clean, legend, new_figure, strategy_colours
from fednnunet.reporting.tables.results_table import order_strategies

BANDS = {"middle half of the nodes": (0.25, 0.75, 0.35), "nine in ten nodes": (0.05, 0.95, 0.15)}
"""Quantiles of the nodes, and how opaque the band between them is."""
MOST_NAMED = 2
"""Outliers of a panel that are drawn and named."""
WHISKER = 1.5
"""A value farther from the middle half than so many times its length is an outlier, as in a box plot."""
MOST_TICKS = 10
SIZE_CLASSES = 6
"""Classes of equally many nodes, by their number of cases, whose medians are joined by a line."""


def band_handles(colour: str) -> list[Line2D | Patch]:
    """Entries of a legend for :func:`draw_band`."""
    bands = [Patch(color=colour, alpha=alpha, lw=0, label=name) for name, (_, _, alpha) in BANDS.items()]
    return [Line2D([], [], color=colour, lw=2, label="median of the nodes"), *bands]


def draw_band(axes: Axes, rounds: pd.DataFrame, column: str, colour: str) -> None:
    """Median and quantiles of the nodes over rounds, and a thin line with its name for each of the few outliers.

    A round counts the nodes that were in it; of several folds or seeds, a node counts with its mean.

    Args:
        axes: where to draw.
        rounds: columns of ``rounds.csv``, of one strategy.
        column: what to draw.
        colour: of line and bands.
    """
    of_nodes = rounds.dropna(subset=[column]).pivot_table(index="round", columns="node", values=column)
    if of_nodes.empty:
        return
    marker = "o" if len(of_nodes) < 4 else None
    axes.plot(of_nodes.index, of_nodes.median(axis=1), color=colour, lw=1.8, marker=marker, ms=4)
    for low, high, alpha in BANDS.values():
        edges = of_nodes.quantile([low, high], axis=1)
        axes.fill_between(of_nodes.index, edges.loc[low], edges.loc[high], color=colour, alpha=alpha, lw=0)
    for node in find_outliers(of_nodes.ffill().iloc[-1]):
        of_node = of_nodes[node].dropna()
        axes.plot(of_node.index, of_node, color=INK, lw=0.8, ls=":")
        axes.annotate(str(node), (of_node.index[-1], of_node.iloc[-1]), fontsize=7, color=INK, ha="right", va="bottom")


def find_outliers(values: pd.Series) -> list[str]:
    """Nodes whose value is farther out than a box plot's whiskers reach; the farthest :data:`MOST_NAMED`."""
    low, high = values.quantile([0.25, 0.75])
    reach = WHISKER * (high - low)
    beyond = np.maximum(low - reach - values, values - high - reach)
    return [str(node) for node in beyond[beyond > 0].nlargest(MOST_NAMED).index]


def score_distributions(
    scores: pd.DataFrame,
    training: Sequence[str],
    external: Sequence[str],
    distance_unit: str,
    sizes: Mapping[str, int] | None = None,
) -> Figure:
    """Mean DSC and HD95 of every node: sorted from the worst to the best, and against the number of its cases.

    Args:
        scores: one row per case (:func:`~fednnunet.reporting.tables.results_table.case_means`).
        training: nodes with training cases.
        external: nodes without training cases, drawn apart.
        distance_unit: ``mm`` or ``pixels``.
        sizes: training node to its number of training cases; without it there is no second column.
    """
    strategies = order_strategies(scores["strategy"])
    colours = strategy_colours(strategies)
    means = scores.groupby(["strategy", "node"])[["dsc", "hd95"]].mean()
    figure = new_figure((10.5 if sizes else 6.5, 6.4))
    grid = figure.subplots(2, 2 if sizes else 1, squeeze=False, sharex="col", sharey="row")
    titles = {"dsc": "DSC  (higher is better)", "hd95": f"HD95 in {distance_unit}  (lower is better)"}
    for row, (column, title) in zip(grid, titles.items(), strict=True):
        for axes in row:
            clean(axes)
        row[0].set_title(title, loc="left", fontsize=10, color=INK)
        for strategy in strategies:
            of_nodes = means.loc[strategy][column].dropna()
            worst_first = of_nodes.sort_values(ascending=column == "dsc")
            inside = worst_first[worst_first.index.isin(training)]
            _draw_sorted(row[0], inside, 0, colours[strategy], filled=True)
            _draw_sorted(
                row[0], worst_first[worst_first.index.isin(external)], 1.04 * len(training), colours[strategy], False
            )
            if sizes:
                _draw_by_size(row[1], inside, sizes, colours[strategy])
        if column == "dsc":
            row[0].set_ylim(-0.02, 1.02)
        else:
            row[0].set_ylim(bottom=0)
    for axes in grid[:, 0]:
        end = 1.04 * len(training) + len(external)
        axes.set_xlim(-0.1 * len(training), end)
        if external:
            axes.axvspan(1.02 * len(training), end, color="#f1f3f5", zorder=-5, lw=0)
    grid[-1][0].set_xlabel(f"{len(training)} training nodes, worst to best" + (", then external" if external else ""))
    grid[-1][0].set_xticks([])
    if sizes:
        grid[-1][1].set_xlabel("training cases of the node")
        grid[-1][1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    legend(figure, [Line2D([], [], color=colours[name], marker="o", lw=1.6, ms=4, label=name) for name in strategies])
    return figure


def _draw_sorted(axes: Axes, values: pd.Series, start: float, colour: str, filled: bool) -> None:
    """A dot per node in the order of ``values``, the first one with its name."""
    if values.empty:
        return
    places = start + np.arange(len(values))
    axes.plot(places, values, "o-", color=colour, lw=0.8, ms=3, mfc=colour if filled else "white")
    if filled:
        first = (places[0], values.iloc[0])
        axes.annotate(
            str(values.index[0]), first, (-4, 0), textcoords="offset points", fontsize=7, color=colour, ha="right"
        )


def _draw_by_size(axes: Axes, values: pd.Series, sizes: Mapping[str, int], colour: str) -> None:
    """A dot per node at its number of cases, and the medians of classes of equally many nodes."""
    known = pd.DataFrame({"value": values, "size": pd.Series(sizes, dtype=float)}).dropna().sort_values("size")
    axes.plot(known["size"], known["value"], "o", color=colour, ms=3, alpha=0.5, mew=0)
    classes = [part for part in np.array_split(np.arange(len(known)), SIZE_CLASSES) if len(part)]
    medians = pd.DataFrame([known.iloc[part].median() for part in classes], columns=known.columns)
    axes.plot(medians["size"], medians["value"], color=colour, lw=1.8)


def cross_centre_map(
    means: Mapping[str, pd.DataFrame], training: Sequence[str], external: Sequence[str], strategies: Sequence[str]
) -> Figure:
    """Mean DSC of models (rows) at centres (columns) as colours, one panel per strategy.

    Models and training centres are in one order, that of the models' means at other centres, the best first.

    Args:
        means: strategy to table of models by centres.
        training: nodes with training cases.
        external: nodes without training cases.
        strategies: panels from left to right.
    """
    own = np.eye(len(training), dtype=bool)
    tables = [means[name].reindex(index=training, columns=[*training]) for name in strategies]
    elsewhere = pd.concat([table.mask(own).mean(axis=1) for table in tables], axis=1).mean(axis=1)
    order = list(elsewhere.sort_values(ascending=False, na_position="last", kind="stable").index)
    across = min(len(strategies), 3)
    down = -(-len(strategies) // across)
    figure = new_figure((0.8 + 3.6 * across, 4.0 * down))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(strategies) :]:
        axes.set_axis_off()
    ticks = np.unique(np.linspace(0, len(order) - 1, MOST_TICKS).round().astype(int))
    for place, (axes, strategy) in enumerate(zip(panels, strategies, strict=False)):
        matrix = means[strategy].reindex(index=order, columns=[*order, *external])
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
        inside = matrix[order]
        parts = {"own": inside.where(own), "elsewhere": inside.mask(own), "external": matrix[[*external]]}
        shown = (f"{name} {part.stack().mean():.2f}" for name, part in parts.items() if part.notna().any(axis=None))
        axes.set_title(f"{strategy}\n{', '.join(shown)}", fontsize=9, color=INK)
        labels = [order[tick] for tick in ticks]
        axes.set_yticks(ticks, labels if place % across == 0 else [], fontsize=7)
        axes.set_xticks(ticks, labels, rotation=90, fontsize=7)
        axes.tick_params(length=2, labelcolor=INK)
        axes.spines[:].set_visible(False)
        if external:
            axes.axvline(len(order) - 0.5, color="white", lw=2)
        if place % across == 0:
            axes.set_ylabel(f"model of one of {len(order)} nodes, best first", color=INK)
        axes.set_xlabel("cases of" + (f", then {len(external)} external" if external else ""), color=INK)
    figure.colorbar(image, ax=list(panels), shrink=0.6, label="mean DSC")
    return figure


def sorted_differences(
    intervals: Mapping[str, Mapping[str, Interval]],
    together: str,
    external: Sequence[str],
    title: str,
    colours: Mapping[str, str],
) -> Figure:
    """Mean differences of nodes with their confidence intervals, sorted, one panel per strategy.

    Args:
        intervals: row to strategy to mean and interval.
        together: the row of all nodes, drawn as a band.
        external: rows that are drawn with hollow dots.
        title: title of the axis.
        colours: strategy to colour.
    """
    strategies = list(dict.fromkeys(strategy for row in intervals.values() for strategy in row))
    figure = new_figure((max(4.3, 0.5 + 3.2 * len(strategies)), 5.2))
    for axes, strategy in zip(
        figure.subplots(1, len(strategies), squeeze=False, sharex=True, sharey=True)[0], strategies, strict=True
    ):
        clean(axes)
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color="#9aa5b1", lw=1, ls="--")
        of_all = intervals.get(together, {}).get(strategy)
        if of_all is not None:
            axes.axvspan(of_all.low, of_all.high, color=colours[strategy], alpha=0.2, lw=0)
            axes.axvline(of_all.mean, color=colours[strategy], lw=1.6)
        rows = {row: found[strategy] for row, found in intervals.items() if strategy in found and row != together}
        names = sorted(rows, key=lambda row: rows[row].mean)
        for place, name in enumerate(names):
            interval, hollow = rows[name], name in external
            axes.plot([interval.low, interval.high], [place, place], color=colours[strategy], lw=0.8, alpha=0.5)
            axes.plot(interval.mean, place, "o", ms=3, color=colours[strategy], mfc="white" if hollow else None)
        for place in {0, len(names) - 1} if names else ():
            where = rows[names[place]].mean, place
            axes.annotate(names[place], where, (6, -3), textcoords="offset points", fontsize=7)
        axes.set_title(strategy, fontsize=10, color=INK)
        axes.set_yticks([])
        axes.set_xlabel(title, fontsize=8)
        axes.set_ylabel(f"{len(names)} centres, sorted")
    return figure
