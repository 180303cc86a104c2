"""Figures of the report. Colours are Okabe and Ito's, told apart by colour-blind readers too."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fednnunet.errors import DataError
from fednnunet.evaluation.statistics import Interval
from fednnunet.reporting.tables import case_means, order_setups

SETUP_COLOURS = {"local": "#7a7a7a", "asym": "#0072B2", "ffe": "#D55E00", "centralized": "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#8c6d31", "#5e4fa2", "#000000")
NODE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a7a7a", "#000000")
NODE_DASHES = ("-", "--", "-.", ":")
POOLED_COLOUR = "#333333"
REFERENCE_COLOUR, PREDICTION_COLOUR = "#56B4E9", "#F0B400"
INK, FAINT = "#26313b", "#d9dee3"
CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "pseudo_dice": "pseudo-Dice"}
MB = 1e6


def setup_colours(setups: Sequence[str]) -> dict[str, str]:
    """Colour of every set-up; the paper's four always have the same."""
    spare = iter(OTHER_COLOURS * (1 + len(setups) // len(OTHER_COLOURS)))
    return {name: SETUP_COLOURS.get(name) or next(spare) for name in setups}


def node_styles(nodes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of every node."""
    count = len(NODE_COLOURS)
    return {name: (NODE_COLOURS[i % count], NODE_DASHES[i // count % len(NODE_DASHES)]) for i, name in enumerate(nodes)}


def learning_curves(rounds: pd.DataFrame, nodes: Sequence[str]) -> Figure:
    """Losses and pseudo-Dice of every node over rounds; a column a set-up.

    With several seeds the line is their mean and the band their range.

    Args:
        rounds: columns of ``rounds.csv``.
        nodes: in the order of the legend; others that ``rounds`` names follow.
    """
    setups = order_setups(rounds["strategy"])
    styles = node_styles(nodes) | {name: (POOLED_COLOUR, "-") for name in rounds["node"].unique() if name not in nodes}
    single = len(setups) == 1
    shape = (1, len(CURVES)) if single else (len(CURVES), len(setups))
    size = (10.5, 3.3) if single else (0.8 + 2.75 * len(setups), 7.0)
    figure = _figure(size)
    grid = figure.subplots(*shape, squeeze=False, sharex=True, sharey=False if single else "row")
    for row, (column, title) in enumerate(CURVES.items()):
        for place, setup in enumerate(setups):
            axes: Axes = grid[0][row] if single else grid[row][place]
            _clean(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            if single:
                axes.set_title(title, fontsize=10, color=INK)
            else:
                if row == 0:
                    axes.set_title(setup, fontsize=10, fontweight="bold", color=INK)
                if place == 0:
                    axes.set_ylabel(title)
            if single or row == len(CURVES) - 1:
                axes.set_xlabel("round")
            if column == "pseudo_dice":
                axes.set_ylim(0, 1)
            _draw_nodes(axes, rounds[rounds["strategy"] == setup], column, styles)
    drawn = [name for name in styles if name in set(rounds["node"])]
    handles = [Line2D([], [], color=styles[name][0], ls=styles[name][1], lw=2, label=name) for name in drawn]
    _legend(figure, handles)
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


def case_scores(cases: pd.DataFrame, training: Sequence[str], external: Sequence[str], hd95_unit: str) -> Figure:
    """DSC and HD95: a bar is the mean over a node's held-out cases, a dot is a case.

    Args:
        cases: columns of ``cases.csv``.
        training: nodes with training cases.
        external: nodes without, drawn apart.
        hd95_unit: ``mm`` or ``pixels``.
    """
    setups = order_setups(cases["strategy"])
    colours = setup_colours(setups)
    scores = case_means(cases)
    nodes = [*training, *external]
    centres = {name: i + (0.35 if name in external else 0.0) for i, name in enumerate(nodes)}
    figure = _figure((max(6.0, 1.4 + 0.3 * len(nodes) * (1 + len(setups))), 6.4))
    width = 0.8 / len(setups)
    for axes, (column, title) in zip(
        figure.subplots(2, 1, sharex=True),
        {"dsc": "DSC  (higher is better)", "hd95": f"HD95 in {hd95_unit}  (lower is better)"}.items(),
        strict=True,
    ):
        _clean(axes)
        axes.grid(visible=False, axis="x")
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        for place, setup in enumerate(setups):
            for node in nodes:
                chosen = scores[(scores["strategy"] == setup) & (scores["node"] == node)][column].dropna()
                if chosen.empty:
                    continue
                x = centres[node] + (place - (len(setups) - 1) / 2) * width
                axes.bar(x, chosen.mean(), width * 0.9, color=colours[setup], alpha=0.35, lw=0)
                axes.hlines(chosen.mean(), x - width * 0.45, x + width * 0.45, color=colours[setup], lw=2)
                spread = (np.arange(len(chosen)) * 0.618 % 1 - 0.5) * width * 0.6
                axes.plot(x + spread, chosen, "o", ms=3.2, mfc=colours[setup], mec="white", mew=0.4, alpha=0.9)
        if external:
            axes.axvspan(len(training) - 0.3, len(nodes) - 0.1, color="#f1f3f5", zorder=-5, lw=0)
        if column == "dsc":
            axes.set_ylim(0, 1)
        axes.set_xticks(list(centres.values()), [f"{name}\n(external)" if name in external else name for name in nodes])
        axes.tick_params(axis="x", length=0)
    _legend(figure, [Patch(color=colours[name], alpha=0.75, lw=0, label=name) for name in setups])
    return figure


def overlay_row(node: str, slices: Mapping[str, Path]) -> Figure:
    """One held-out slice with the contours of reference and prediction, set-ups side by side.

    Args:
        node: whose case it is.
        slices: set-up to ``.npz`` with ``image`` (Y, X), ``reference`` (Y, X), ``prediction`` (Y, X),
            ``spacing`` (2,) in mm and ``dsc`` of the whole case.

    Raises:
        DataError: a file lacks an array or can not be read; names it.
    """
    loaded = {setup: read_overlay(path) for setup, path in slices.items()}
    shape, spacing = next((a["image"].shape, a["spacing"]) for a in loaded.values())
    aspect = shape[0] * spacing[0] / (shape[1] * spacing[1])
    width = min(max(3.0 / aspect, 1.6), 3.6)
    figure = _figure((0.1 + (width + 0.1) * len(slices), width * aspect + 1.1))
    panels = figure.subplots(1, len(slices), squeeze=False)[0]
    for axes, (setup, arrays) in zip(panels, loaded.items(), strict=True):
        image, spacing = arrays["image"], arrays["spacing"]
        low, high = np.percentile(image, [0.5, 99.5])
        axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=float(spacing[0] / spacing[1]))
        for name, colour, dashes in (
            ("reference", REFERENCE_COLOUR, "solid"),
            ("prediction", PREDICTION_COLOUR, "dashed"),
        ):
            for label in np.unique(arrays[name][arrays[name] > 0]):
                axes.contour(arrays[name] == label, [0.5], colors=colour, linewidths=1.5, linestyles=dashes)
        if not (arrays["prediction"] > 0).any():
            axes.text(
                *(0.5, 0.03, "nothing predicted in this slice"),
                transform=axes.transAxes,
                ha="center",
                fontsize=8,
                color="white",
            )
        dsc = float(arrays["dsc"])
        axes.set_title(f"{node} · {setup}\nDSC {'not defined' if np.isnan(dsc) else f'{dsc:.3f}'}", fontsize=10)
        axes.set_axis_off()
    handles = [
        Line2D([], [], color=REFERENCE_COLOUR, lw=2, label="reference"),
        Line2D([], [], color=PREDICTION_COLOUR, lw=2, ls="--", label="prediction"),
    ]
    _legend(figure, handles, place="outside lower center")
    return figure


def read_overlay(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an overlay file.

    Raises:
        DataError: an array is missing or the file can not be read; names it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("image", "reference", "prediction", "spacing", "dsc")}
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no overlay: {error}") from None


def round_costs(rounds: pd.DataFrame) -> Figure:
    """Time and traffic of a round: training and exchange at the slowest node, megabytes of all nodes."""
    setups = order_setups(rounds["strategy"])
    colours = setup_colours(setups)
    figure = _figure((10.5, 3.4))
    time_axes, bytes_axes = figure.subplots(1, 2)
    for axes, title, columns, gather in (
        (time_axes, "seconds a round, slowest node", ("seconds_train", "seconds_exchange"), "max"),
        (bytes_axes, "MB a round, all nodes", ("bytes_up", "bytes_down"), "sum"),
    ):
        _clean(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        for setup in setups:
            chosen = rounds[rounds["strategy"] == setup]
            keys = [key for key in ("seed", "round") if key in chosen.columns]
            by_round = chosen.groupby(keys)[list(columns)].agg(gather).groupby("round").mean()
            scale = MB if gather == "sum" else 1.0
            for column, dashes in zip(columns, ("-", "--"), strict=True):
                axes.plot(by_round.index, by_round[column] / scale, color=colours[setup], ls=dashes, lw=1.6)
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
    _legend(figure, [Line2D([], [], color=colours[name], lw=2.5, label=name) for name in setups])
    return figure


def cross_centre(cases: pd.DataFrame, training: Sequence[str], external: Sequence[str]) -> Figure | None:
    """Mean DSC of each node's model (rows) on each centre's held-out cases (columns), a panel a set-up (paper, Fig. 4).

    Args:
        cases: columns of ``cases.csv``.
        training: nodes with training cases.
        external: nodes without.

    Returns:
        None where no model was scored on another training centre.
    """
    elsewhere = cases[(cases["model"] != cases["node"]) & cases["node"].isin(training) & cases["model"].isin(training)]
    setups = [name for name in order_setups(cases["strategy"]) if name in set(elsewhere["strategy"])]
    if not setups:
        return None
    columns = [*training, *external]
    of_case = cases.groupby(["strategy", "model", "node", *_keys(cases)])["dsc"].mean()
    means = of_case.groupby(["strategy", "model", "node"]).mean()
    figure = _figure((1.2 + (0.55 * len(columns) + 0.9) * len(setups), 1.5 + 0.5 * len(training)))
    for place, (axes, setup) in enumerate(zip(figure.subplots(1, len(setups), squeeze=False)[0], setups, strict=True)):
        matrix = means[setup].unstack("node").reindex(index=training, columns=columns)
        axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (row, column), value in np.ndenumerate(matrix.to_numpy()):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if value < 0.6 else INK)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(training)), training if place == 0 else [], fontsize=8)
        axes.set_title(setup, fontsize=10, fontweight="bold", color=INK)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        if external:
            axes.axvline(len(training) - 0.5, color="white", lw=3)
        if place == 0:
            axes.set_ylabel("model of", color=INK)
        axes.set_xlabel("cases of", color=INK)
    return figure


def _keys(cases: pd.DataFrame) -> list[str]:
    return [key for key in ("fold", "seed", "case") if key in cases.columns]


def forest(
    intervals: Mapping[str, Interval], values: Mapping[str, Sequence[float]], reference: str, title: str
) -> Figure:
    """Means with their confidence intervals, one below the other; the values behind each as dots.

    Args:
        intervals: set-up to mean and interval.
        values: set-up to one value a seed.
        reference: set-up whose mean is drawn through all rows.
        title: of the axis.
    """
    names = list(intervals)
    colours = setup_colours([name.split(" ")[0] for name in names])
    figure = _figure((7.0, 0.9 + 0.36 * len(names)))
    axes: Axes = figure.subplots()
    _clean(axes)
    axes.grid(visible=False, axis="y")
    axes.axvline(intervals[reference].mean, color="#9aa5b1", lw=1, ls="--")
    for place, name in enumerate(names):
        interval, colour = intervals[name], colours[name.split(" ")[0]]
        axes.plot(values[name], [place] * len(values[name]), "o", ms=4, mfc="none", mec=colour, alpha=0.6)
        axes.plot([interval.low, interval.high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(interval.mean, place, "D", ms=6, color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[bytes, bytes]:
    """Write ``<folder>/<name>.png`` and ``.svg``; returns both contents."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = _render(figure, "png"), _render(figure, "svg")
    (folder / f"{name}.png").write_bytes(png)
    (folder / f"{name}.svg").write_bytes(svg)
    return png, svg


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots an inch."""
    return _render(figure, "png")


def as_data_uri(content: bytes, kind: str) -> str:
    """A picture as part of a page; ``kind`` such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _render(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, facecolor="white", metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b1")
    axes.grid(visible=True, color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#9aa5b1", labelcolor=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)


def _legend(
    figure: Figure,
    handles: Sequence[Line2D | Patch],
    place: Literal["outside upper center", "outside lower center"] = "outside upper center",
) -> None:
    columns = max(1, min(len(handles), 6))
    figure.legend(handles=handles, loc=place, ncols=columns, frameon=False, fontsize=9)
