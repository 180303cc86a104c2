"""Images and labels of centres, one row per quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fednnunet.datasets.quality.summary import CentreSummary
from fednnunet.listing import MOST_NODES
from fednnunet.reporting.figures.many_centres import centre_distributions
from fednnunet.reporting.figures.quantities import Quantity, quantities_of
from fednnunet.reporting.figures.style import INK, WARNING, clean, draw_box, new_figure, node_styles, scale_values


def centre_summaries(centres: Sequence[CentreSummary]) -> Figure:
    """Sizes, spacings, intensities, label volumes and orientations; a column per centre.

    A box holds the middle half of the cases, its line is the median, its whiskers reach at most 1.5 times the box's
    length; a dot is a case. Few cases get no box. Three boxes of a centre are the axes Z, Y, X, or percentiles. More
    centres than can be told apart are drawn by :func:`centre_distributions`.

    Args:
        centres: centres in the order of the columns; external ones are drawn on grey.
    """
    quantities = quantities_of(centres)
    if len(centres) > MOST_NODES:
        return centre_distributions(centres, quantities)
    oriented = any(centre.orientations for centre in centres)
    heights = [1.0] * len(quantities) + [0.4] * oriented
    figure = new_figure((max(6.0, 1.0 + 1.35 * len(centres)), 0.7 + 1.75 * sum(heights)))
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    colours = {name: colour for name, (colour, _) in node_styles([centre.name for centre in centres]).items()}
    for axes, quantity in zip(panels, quantities, strict=False):
        _draw_row(axes, quantity, centres, colours)
    if oriented:
        _draw_orientations(panels[-1], centres, colours)
    for axes in panels:
        for place, centre in enumerate(centres):
            if centre.external:
                axes.axvspan(place - 0.5, place + 0.5, color="#f1f3f5", zorder=-5, lw=0)
        axes.tick_params(axis="x", length=0)
    panels[-1].set_xlim(-0.5, len(centres) - 0.5)
    panels[-1].set_xticks(range(len(centres)), [_title(centre) for centre in centres])
    return figure


def _draw_row(axes: Axes, quantity: Quantity, centres: Sequence[CentreSummary], colours: Mapping[str, str]) -> None:
    clean(axes)
    axes.grid(visible=False, axis="x")
    axes.set_title(quantity.title, loc="left", fontsize=10, color=INK)
    values = [quantity.columns(centre) for centre in centres]
    scale_values(axes, np.concatenate([of_centre.ravel() for of_centre in values]), quantity.may_be_logarithmic)
    for place, (of_centre, centre) in enumerate(zip(values, centres, strict=True)):
        boxes = of_centre.shape[1]
        width = min(0.8 / max(boxes, 1), 0.4)
        for number in range(boxes):
            where = place + (number - (boxes - 1) / 2) * width
            draw_box(axes, of_centre[:, number], where, width, colours[centre.name], mean=False)
    _note_absent(axes, [quantity.absent(centre) for centre in centres], centres)


def _note_absent(axes: Axes, absent: Sequence[int], centres: Sequence[CentreSummary]) -> None:
    """Write below the title how many cases of a centre lack the label."""
    if not any(absent):
        return
    low, high = axes.get_ylim()
    axes.set_ylim(top=high * (high / low) ** 0.15 if axes.get_yscale() == "log" else high + 0.15 * (high - low))
    for place, (centre, number) in enumerate(zip(centres, absent, strict=True)):
        if number:
            text, above = f"not in {number} of {len(centre.cases)}", axes.get_xaxis_transform()
            axes.text(place, 0.98, text, fontsize=7.5, color=WARNING, transform=above, ha="center", va="top")


def _draw_orientations(axes: Axes, centres: Sequence[CentreSummary], colours: dict[str, str]) -> None:
    """Shares of the cases as a stacked bar, the most frequent at the bottom."""
    clean(axes)
    axes.grid(visible=False)
    axes.spines[["left"]].set_visible(False)
    axes.set_yticks([])
    axes.set_title(
        "orientation: plane of the slices, where the axes X, Y, Z run to", loc="left", fontsize=10, color=INK
    )
    for place, centre in enumerate(centres):
        below, total = 0.0, sum(centre.orientations.values())
        for number, (orientation, count) in enumerate(centre.orientations.most_common()):
            share = count / total
            shade = ("55", "22")[number % 2]
            axes.bar(place, share, 0.86, below, color=f"{colours[centre.name]}{shade}", edgecolor="white", lw=1)
            if share > 0.15:
                text = orientation if count == total else f"{orientation}: {count}"
                axes.text(place, below + share / 2, text, fontsize=8, color=INK, ha="center", va="center")
            below += share
    axes.set_ylim(0, 1)


def _title(centre: CentreSummary) -> str:
    external = "\n(external)" if centre.external else ""
    return f"{centre.name}\n{len(centre.cases)} {'case' if len(centre.cases) == 1 else 'cases'}{external}"
