"""Slices of held-out cases with the contours of reference and prediction."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fednnunet.errors import DataError
from fednnunet.reporting.figures.style import INK, legend, new_figure

REFERENCE_COLOUR, PREDICTION_COLOUR = "#56B4E9", "#F0B400"
PANEL_PIXELS = 320
GREYS, SHADES = 48, 8
"""Colours of a panel: greys, and shades of each contour's colour; a third of the bytes of full colour."""


@dataclass(frozen=True)
class Overlay:
    """One slice of a held-out case.

    Attributes:
        image: intensities (Y, X).
        reference: labels (Y, X).
        prediction: labels (Y, X).
        spacing: spacing of Y and X in mm.
        dsc: DSC of the whole case; NaN if undefined.
    """

    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    spacing: np.ndarray
    dsc: float

    @property
    def aspect(self) -> float:
        """Height over width, in mm."""
        height, width = np.asarray(self.image.shape) * self.spacing
        return float(height / width)

    @property
    def found(self) -> bool:
        """Whether the prediction holds anything in this slice."""
        return bool((self.prediction > 0).any())


def read_overlay(path: Path) -> Overlay:
    """Read an overlay file.

    Raises:
        DataError: an array is missing or the file cannot be read; names it.
    """
    arrays = _read(path, ("image", "reference", "prediction", "spacing", "dsc"))
    return Overlay(**{**arrays, "dsc": float(arrays["dsc"])})


def read_dsc(path: Path) -> float:
    """DSC of the case in an overlay file, without reading its images.

    Raises:
        DataError: as :func:`read_overlay`.
    """
    return float(_read(path, ("dsc",))["dsc"])


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is not an overlay: {error}") from None


def show_dsc(dsc: float) -> str:
    """The DSC of a case as text."""
    return "not defined" if np.isnan(dsc) else f"{dsc:.3f}"


def overlay_panel(overlay: Overlay) -> bytes:
    """The slice with both contours and without text, as a small PNG for a page."""
    height = min(max(overlay.aspect, 0.4), 1.6)
    figure = Figure(figsize=(PANEL_PIXELS / 120, PANEL_PIXELS / 120 * height), dpi=120, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    _draw(figure.add_axes((0, 0, 1, 1)), overlay)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    out = io.BytesIO()
    picture.quantize(palette=_panel_palette(), dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return out.getvalue()


def _panel_palette() -> Image.Image:
    """A palette that keeps the contours' colours, which a palette of the most frequent colours loses."""
    greys = np.linspace(0, 1, GREYS)[:, None].repeat(3, axis=1)
    shades = [np.linspace(0.4, 1, SHADES)[:, None] * to_rgb(colour) for colour in (REFERENCE_COLOUR, PREDICTION_COLOUR)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.round(255 * np.vstack((greys, *shades))).astype(np.uint8).ravel().tolist())
    return palette


def overlay_grid(node: str, cases: Mapping[str, Mapping[str, Overlay]]) -> Figure:
    """Slices of a node's cases, one below the other, strategies side by side.

    Args:
        node: name of the node.
        cases: title of a case (such as ``best``) to strategy to slice.
    """
    strategies = list(dict.fromkeys(strategy for case in cases.values() for strategy in case))
    aspect = max(overlay.aspect for case in cases.values() for overlay in case.values())
    width = min(max(3.0 / aspect, 1.6), 3.6)
    figure = new_figure((0.1 + (width + 0.1) * len(strategies), (width * aspect + 0.6) * len(cases) + 0.5))
    grid = figure.subplots(len(cases), len(strategies), squeeze=False)
    for row, (title, slices) in zip(grid, cases.items(), strict=True):
        for axes, strategy in zip(row, strategies, strict=True):
            axes.set_axis_off()
            if strategy not in slices:
                continue
            overlay = slices[strategy]
            _draw(axes, overlay)
            axes.set_title(f"{node} · {title} · {strategy}\nDSC {show_dsc(overlay.dsc)}", fontsize=9, color=INK)
            if not overlay.found:
                where = {"x": 0.5, "y": 0.03, "transform": axes.transAxes, "ha": "center"}
                axes.text(s="nothing predicted in this slice", fontsize=8, color="white", **where)
    handles = [
        Line2D([], [], color=REFERENCE_COLOUR, lw=2, label="reference"),
        Line2D([], [], color=PREDICTION_COLOUR, lw=2, ls="--", label="prediction"),
    ]
    legend(figure, handles, place="outside lower center")
    return figure


def _draw(axes: Axes, overlay: Overlay) -> None:
    axes.set_axis_off()
    low, high = np.percentile(overlay.image, [0.5, 99.5])
    aspect = float(overlay.spacing[0] / overlay.spacing[1])
    axes.imshow(overlay.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
    for labels, colour, dashes in (
        (overlay.reference, REFERENCE_COLOUR, "solid"),
        (overlay.prediction, PREDICTION_COLOUR, "dashed"),
    ):
        for label in np.unique(labels[labels > 0]):
            axes.contour(labels == label, [0.5], colors=colour, linewidths=1.5, linestyles=dashes)
