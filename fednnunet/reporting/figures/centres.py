"""Images and labels of centres, one row per quantity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fednnunet.datasets.quality.summary import CentreSummary, channels_of, labels_of
from fednnunet.reporting.figures.style import INK, clean, draw_box, new_figure, node_styles

LOGARITHMIC = 8.0
"""Positive values that span a larger factor are drawn on a logarithmic axis."""
WARNING = "#b02a37"
TICKS = (1.0, 2.0, 5.0)
Columns = Callable[[CentreSummary], np.ndarray]


def centre_summaries(centres: Sequence[CentreSummary]) -> Figure:
    """Sizes, spacings, intensities, label volumes and orientations; a column per centre.

    A box holds the middle half of the cases, its line is the median, its whiskers reach at most 1.5 times the box's
    length; a dot is a case. Few cases get no box. Three boxes of a centre are the axes Z, Y, X, or percentiles.

    Args:
        centres: centres in the order of the columns; external ones are drawn on grey.
    """
    rows: list[tuple[str, Columns]] = [
        ("image size in voxels:  Z, Y, X from left to right", lambda centre: centre.shapes)
    ]
    if any(centre.spacings.size for centre in centres):
        axes_of_spacing = "Z, Y, X" if any(centre.spacings.shape[1] == 3 for centre in centres) else "Y, X"
        rows.append((f"spacing in mm:  {axes_of_spacing}", lambda centre: centre.spacings))
    for channel, name in channels_of(centres):
        title = f"intensity of {name}:  0.5 %, median, 99.5 % of a case's voxels that are not 0"
        rows.append((title, partial(_of_channel, channel=channel)))
    labels = labels_of(centres)
    for label in labels:
        units = " or ".join(dict.fromkeys(centre.unit for centre in centres if centre.cases))
        rows.append((f"volume of {label} in {units}", partial(_of_label, label=label)))
    oriented = any(centre.orientations for centre in centres)
    heights = [1.0] * len(rows) + [0.4] * oriented
    figure = new_figure((max(6.0, 1.0 + 1.35 * len(centres)), 0.7 + 1.75 * sum(heights)))
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    colours = {name: colour for name, (colour, _) in node_styles([centre.name for centre in centres]).items()}
    for axes, (title, columns) in zip(panels, rows, strict=False):
        _draw_row(axes, title, [columns(centre) for centre in centres], [colours[centre.name] for centre in centres])
    for axes, label in zip(panels[len(rows) - len(labels) :], labels, strict=False):
        _note_absent(axes, label, centres)
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


def _of_channel(centre: CentreSummary, channel: int) -> np.ndarray:
    return centre.intensities(channel) if channel < len(centre.channels) else np.empty((0, 3))


def _of_label(centre: CentreSummary, label: str) -> np.ndarray:
    """Volumes of the cases that have the label (case, 1)."""
    volumes = centre.volumes(label) if label in centre.labels else np.empty(0)
    return volumes[volumes > 0][:, None]


def _draw_row(axes: Axes, title: str, values: Sequence[np.ndarray], colours: Sequence[str]) -> None:
    clean(axes)
    axes.grid(visible=False, axis="x")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    drawn = np.concatenate([of_centre.ravel() for of_centre in values])
    if not title.startswith("intensity") and drawn.size and drawn.max() > LOGARITHMIC * drawn.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(drawn.min(), drawn.max())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.set_ylim(drawn.min() / 1.3, drawn.max() * 1.3)
    elif drawn.size:
        axes.set_ylim(min(0.0, 1.05 * drawn.min()), 1.08 * drawn.max())
    for place, (of_centre, colour) in enumerate(zip(values, colours, strict=True)):
        boxes = of_centre.shape[1]
        width = min(0.8 / max(boxes, 1), 0.4)
        for number in range(boxes):
            draw_box(axes, of_centre[:, number], place + (number - (boxes - 1) / 2) * width, width, colour, mean=False)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the values; the powers alone where that would be many."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**power for power in powers for step in TICKS]
    within = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
    return within if len(within) <= 6 else [tick for tick in within if np.log10(tick) % 1 < 1e-9]


def _note_absent(axes: Axes, label: str, centres: Sequence[CentreSummary]) -> None:
    """Write below the title how many cases of a centre lack the label."""
    absent = [int((centre.voxels(label) == 0).sum()) if label in centre.labels else 0 for centre in centres]
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
