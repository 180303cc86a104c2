"""What all figures share: colours, axes, legends, files.

Colours are Okabe and Ito's, which colour-blind readers can tell apart too.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

STRATEGY_COLOURS = {"local": "#7a7a7a", "asym": "#0072B2", "ffe": "#D55E00", "centralized": "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#8c6d31", "#5e4fa2", "#000000")
NODE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a7a7a", "#000000")
NODE_DASHES = ("-", "--", "-.", ":")
POOLED_COLOUR = "#333333"
INK, FAINT, WARNING = "#26313b", "#d9dee3", "#b02a37"
LOGARITHMIC = 8.0
"""Positive values that span a larger factor are drawn on a logarithmic axis."""
TICKS = (1.0, 2.0, 5.0)
MIN_CASES_FOR_BOX = 5
MAX_DOTS = 40
"""Largest number of cases that are drawn one by one; of more, only those beyond the whiskers."""


def strategy_colours(strategies: Sequence[str]) -> dict[str, str]:
    """Colour of every strategy; the paper's four always have the same."""
    spare = iter(OTHER_COLOURS * (1 + len(strategies) // len(OTHER_COLOURS)))
    return {name: STRATEGY_COLOURS.get(name) or next(spare) for name in strategies}


def node_styles(nodes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of every node."""
    count = len(NODE_COLOURS)
    return {name: (NODE_COLOURS[i % count], NODE_DASHES[i // count % len(NODE_DASHES)]) for i, name in enumerate(nodes)}


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of ``size``, width and height in inches."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes) -> None:
    """Give the axes thin lines, a faint grid and dark text."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b1")
    axes.grid(visible=True, color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#9aa5b1", labelcolor=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)


def scale_values(axes: Axes, values: np.ndarray, may_be_logarithmic: bool) -> None:
    """Limits of the y axis, and a logarithmic scale with plain numbers where positive values are far apart.

    Args:
        axes: where they are drawn.
        values: all that are drawn.
        may_be_logarithmic: whether a logarithmic scale makes sense.
    """
    if may_be_logarithmic and values.size and values.max() > LOGARITHMIC * values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(values.min(), values.max())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.set_ylim(values.min() / 1.3, values.max() * 1.3)
    elif values.any():
        axes.set_ylim(min(0.0, 1.05 * values.min()), 1.08 * values.max())


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the values; the powers alone where that would be many."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**power for power in powers for step in TICKS]
    within = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
    return within if len(within) <= 6 else [tick for tick in within if np.log10(tick) % 1 < 1e-9]


def draw_box(axes: Axes, values: np.ndarray, x: float, width: float, colour: str, mean: bool = True) -> None:
    """A box plot of a centre's cases, with dots and a diamond for the mean.

    Args:
        axes: axes to draw on.
        values: one value per case.
        x: centre of the box.
        width: width of its place.
        colour: colour as ``#rrggbb``.
        mean: whether to draw the diamond.
    """
    if values.size == 0:
        return
    if values.size >= MIN_CASES_FOR_BOX:
        line = {"color": colour, "lw": 1.1}
        axes.boxplot(
            [values],
            positions=[x],
            widths=width * 0.8,
            patch_artist=True,
            boxprops={"facecolor": f"{colour}33", "edgecolor": colour, "lw": 1.1},
            medianprops={"color": colour, "lw": 2},
            whiskerprops=line,
            capprops=line,
            showfliers=values.size > MAX_DOTS,
            flierprops={"marker": "o", "ms": 2.5, "mfc": colour, "mec": "none"},
            manage_ticks=False,
        )
    if values.size <= MAX_DOTS:
        spread = (np.arange(values.size) * 0.618 % 1 - 0.5) * width * 0.5
        axes.plot(x + spread, values, "o", ms=3, mfc=colour, mec="white", mew=0.3, alpha=0.85, label="case")
    if mean:
        axes.plot(x, values.mean(), "D", ms=4.5, mfc="white", mec=INK, mew=1, zorder=5, label="mean")


def legend(
    figure: Figure,
    handles: Sequence[Line2D | Patch],
    place: Literal["outside upper left", "outside lower center"] = "outside upper left",
) -> None:
    """One legend for all axes, at the left, the part of a wide figure that a phone shows first."""
    columns = max(1, min(len(handles), 6))
    figure.legend(handles=handles, loc=place, ncols=columns, frameon=False, fontsize=9)


def save_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write ``<folder>/<name>.png`` and ``.svg``; returns the latter's content."""
    save_picture(figure, folder, name)
    svg = _render(figure, "svg")
    (folder / f"{name}.svg").write_bytes(svg)
    return svg


def save_picture(figure: Figure, folder: Path, name: str) -> None:
    """Write ``<folder>/<name>.png``, for figures of images, which gain nothing as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(as_png(figure))


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots per inch."""
    return _render(figure, "png")


def as_data_uri(content: bytes, kind: str) -> str:
    """A picture as data URI for a page; ``kind`` is such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _render(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, facecolor="white", metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()
