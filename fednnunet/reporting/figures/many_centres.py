"""Images and labels of more centres than can be told apart: each quantity as a line of centres, sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fednnunet.datasets.quality.summary import CentreSummary
from fednnunet.reporting.figures.quantities import Quantity
from fednnunet.reporting.figures.style import INK, WARNING, clean, legend, new_figure, scale_values

COLOUR = "#0072B2"
NUMBER = Quantity("number of cases", (), "", lambda centre: np.array([[len(centre.cases)]]))
WIDTH = 10.5
"""Inches."""
POINTS = 640.0
"""Width of a row, 1/72 inches."""
THICK = 2.4
"""Widest line, 1/72 inches."""
GAP = 0.03
"""Between training and external centres, as a part of all."""
COLUMNS = 6
"""Of the grid; divisible by the numbers of parts that quantities have."""
MOST_ORIENTATIONS = 6
"""That are drawn; the rarer ones are counted together."""


def centre_distributions(centres: Sequence[CentreSummary], quantities: Sequence[Quantity]) -> Figure:
    """A row per quantity, a panel for each of its parts: all centres, in the order of their medians.

    A thin line reaches from the smallest to the largest case of a centre, a thick one holds the middle half, a dot is
    the median; it is hollow for external centres, which are drawn on grey. The first and the last centre are named.

    Args:
        centres: training and external centres.
        quantities: rows.
    """
    oriented = any(centre.orientations for centre in centres)
    rows = [NUMBER, *quantities]
    heights = [1.0] * len(rows) + [0.55] * oriented
    figure = new_figure((WIDTH, 0.9 + 1.95 * sum(heights)))
    grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
    for row, quantity in enumerate(rows):
        parts = quantity.parts or ("",)
        width = COLUMNS // len(parts)
        for number, part in enumerate(parts):
            axes = figure.add_subplot(grid[row, number * width : (number + 1) * width])
            clean(axes)
            axes.grid(visible=False, axis="x")
            of_part = [_column(quantity.columns(centre), number) for centre in centres]
            title = quantity.name if number == 0 else ""
            axes.set_title(f"{title}{':  ' if title and part else ''}{part}", loc="left", fontsize=10, color=INK)
            scale_values(axes, np.concatenate(of_part), quantity.may_be_logarithmic)
            _draw_sorted(axes, of_part, centres, POINTS / len(parts))
        axes.set_title(_absent(quantity, centres), loc="right", fontsize=8, color=WARNING)
    if oriented:
        _draw_orientations(figure.add_subplot(grid[len(rows), :]), centres)
    handles = [
        Line2D([], [], color=COLOUR, alpha=0.35, lw=1, label="all cases of a centre"),
        Line2D([], [], color=COLOUR, lw=2.4, label="its middle half"),
        Line2D([], [], color=COLOUR, marker="o", ms=4, lw=0, label="its median"),
    ]
    if any(centre.external for centre in centres):
        handles.append(Line2D([], [], color=COLOUR, marker="o", ms=4, mfc="white", lw=0, label="… of an external one"))
    legend(figure, handles)
    figure.supxlabel(f"{_counted(centres)}, each panel sorted by median", fontsize=9, color=INK)
    return figure


def _column(values: np.ndarray, number: int) -> np.ndarray:
    """A part of a quantity; a centre may have fewer, as files of 2D images beside 3D ones."""
    return values[:, number] if number < values.shape[1] else np.empty(0)


def _draw_sorted(axes: Axes, values: Sequence[np.ndarray], centres: Sequence[CentreSummary], points: float) -> None:
    """Draw into axes that are so many ``points`` wide."""
    known = [place for place in range(len(centres)) if values[place].size]
    order = sorted(known, key=lambda place: (centres[place].external, float(np.median(values[place]))))
    gap = GAP * len(order)
    thick = min(THICK, 0.6 * points / max(len(order), 1))
    first_external = next((rank for rank, place in enumerate(order) if centres[place].external), None)
    for rank, place in enumerate(order):
        x = rank + gap * centres[place].external
        low, lower, middle, upper, high = np.quantile(values[place], [0, 0.25, 0.5, 0.75, 1])
        axes.plot([x, x], [low, high], color=COLOUR, lw=0.4 * thick, alpha=0.35, solid_capstyle="butt")
        axes.plot([x, x], [lower, upper], color=COLOUR, lw=thick, solid_capstyle="butt")
        hollow = "white" if centres[place].external else COLOUR
        axes.plot(x, middle, "o", color=COLOUR, ms=1.25 * thick, mew=0.7, mfc=hollow, label="median")
    end = len(order) - 0.5 + gap
    if first_external is not None:
        axes.axvspan(first_external + gap / 2 - 0.5, end, color="#f1f3f5", zorder=-5, lw=0)
    axes.set_xlim(-1, end)
    inside = order[:first_external]
    ends = {0, len(inside) - 1} if inside else set()
    axes.set_xticks(sorted(ends), [centres[inside[rank]].name for rank in sorted(ends)], fontsize=7)
    axes.tick_params(axis="x", length=2)
    for number, label in enumerate(axes.get_xticklabels()):
        label.set_horizontalalignment("right" if number else "left")


def _absent(quantity: Quantity, centres: Sequence[CentreSummary]) -> str:
    """How many cases lack a label, and of how many centres; empty for other quantities and where none does."""
    lacking = [absent for centre in centres if (absent := quantity.absent(centre))]
    if not lacking:
        return ""
    cases, number = sum(len(centre.cases) for centre in centres), len(lacking)
    return f"not in {sum(lacking):,} of {cases:,} cases, of {number} centre{'s' * (number > 1)}"


def _counted(centres: Sequence[CentreSummary]) -> str:
    external = sum(centre.external for centre in centres)
    return f"{len(centres) - external} centres" + (f", then {external} external" if external else "")


def _draw_orientations(axes: Axes, centres: Sequence[CentreSummary]) -> None:
    """Shares of all cases as one bar, the most frequent at the left."""
    clean(axes)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_title(
        "orientation: plane of the slices, where the axes X, Y, Z run to", loc="left", fontsize=10, color=INK
    )
    cases: Counter[str] = sum((Counter(centre.orientations) for centre in centres), Counter())
    of_centres = Counter(orientation for centre in centres for orientation in centre.orientations)
    shown = cases.most_common(MOST_ORIENTATIONS)
    rest = cases.total() - sum(count for _, count in shown)
    left, small = 0.0, []
    for number, (orientation, count) in enumerate([*shown, *([("others", rest)] if rest else [])]):
        share = count / cases.total()
        axes.barh(0, share, 0.8, left, color=f"{COLOUR}{('55', '22')[number % 2]}", edgecolor="white", lw=1)
        where = f" at {of_centres[orientation]} of {len(centres)}" if orientation in of_centres else ""
        if share > 0.15:
            text = f"{orientation}\n{count:,}{where}"
            axes.text(left + share / 2, 0, text, fontsize=8, color=INK, ha="center", va="center")
        else:
            small.append(f"{orientation}: {count:,}{where}")
        left += share
    axes.set_xlim(0, 1)
    axes.set_xlabel(",  ".join(small), fontsize=8, loc="right", color=INK)
