"""Tables of what the images and labels of centres are like, and the list of what will hurt, for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednnunet.datasets.quality.summary import SHARES, CentreSummary, DataIssue

T = TypeVar("T")

MARKS = {"warning": ("!", "yellow"), "bad": ("✗", "red")}
NAMES = 3
"""Cases that a warning names."""
NOTHING = "–"


def show_summary(centres: Sequence[CentreSummary], concerns: Sequence[DataIssue], console: Console) -> None:
    """Print the tables, and below them what will hurt."""
    for table in (images_table(centres), intensities_table(centres), labels_table(centres)):
        console.print(table)
    if not concerns:
        console.print("Nothing found that will hurt.")
    for concern in concerns:
        mark, colour = MARKS[concern.severity]
        console.print(Text.assemble((mark, colour), f" {sentence(concern)}"), soft_wrap=True)
        console.print(Text(f"  → {concern.advice}", style=colour), soft_wrap=True)


def sentence(concern: DataIssue) -> str:
    """Whose, how many cases, which, and what is found."""
    counted = f"{len(concern.cases)} of {concern.of} cases ({_some(concern.cases)}); " if concern.cases else ""
    return f"{concern.centre}, {concern.what}: {counted}{concern.found}"


def as_json(centres: Sequence[CentreSummary], concerns: Sequence[DataIssue]) -> str:
    """All of it for programs: the summaries with every case, and what will hurt."""
    found = {
        "centres": [centre.as_dict() for centre in centres],
        "concerns": [vars(concern) for concern in concerns],
    }
    return json.dumps(found, indent=1)


def images_table(centres: Sequence[CentreSummary]) -> Table:
    """Cases, shapes, spacings and orientations; three lines per centre."""
    table = _table("Images", "centre", "cases", "", "shape (Z, Y, X)", "spacing in mm", "orientation")
    for centre in centres:
        name = f"{centre.name}\n(external)" if centre.external else centre.name
        lies = [f"{lies}: {number}" for lies, number in centre.orientations.most_common()]
        shapes, spacings = (
            _lines(values, digits) for values, digits in ((centre.shapes, "g"), (centre.spacings, ".3g"))
        )
        table.add_row(
            name, str(centre.number), "min\nmedian\nmax", shapes, spacings, "\n".join(lies) or NOTHING, end_section=True
        )
    return table


def intensities_table(centres: Sequence[CentreSummary]) -> Table:
    """Percentiles of every channel: of a case's voxels that are not 0, and of these the median over cases."""
    low, _, high = (f"{share:g} %" for share in SHARES)
    table = _table("Intensities, median over cases", "channel", "centre", low, "median", high)
    for number, name in _each_once(pair for centre in centres for pair in enumerate(centre.channels)):
        having = [centre for centre in centres if centre.cases and number < len(centre.channels)]
        for place, centre in enumerate(having):
            values = np.median(centre.intensities(number), axis=0)
            cells = [_number(value) for value in values]
            table.add_row(name if place == 0 else "", centre.name, *cells, end_section=centre is having[-1])
    return table


def labels_table(centres: Sequence[CentreSummary]) -> Table:
    """Of every label: cases that have it, and its volume in these."""
    table = _table("Labels, volumes where they are", "label", "centre", "cases with it", "min", "median", "max", "unit")
    for label in _each_once(name for centre in centres for name in centre.labels):
        having = [centre for centre in centres if label in centre.labels and centre.cases]
        for place, centre in enumerate(having):
            volumes = centre.volumes(label)
            there = volumes[volumes > 0]
            cells = [_number(float(value)) for value in _spread(there)]
            table.add_row(
                label if place == 0 else "",
                centre.name,
                f"{there.size} of {volumes.size}",
                *(cells or [NOTHING] * 3),
                centre.unit,
                end_section=centre is having[-1],
            )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name in columns:
        text = name in ("", "centre", "channel", "label", "unit", "orientation")
        table.add_column(name, justify="left" if text else "right")
    return table


def _lines(values: np.ndarray, digits: str) -> str:
    """Smallest, median and largest on each axis."""
    if not values.size:
        return NOTHING
    return "\n".join("×".join(f"{value:{digits}}" for value in row) for row in _spread(values))


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _spread(values: np.ndarray) -> list[np.ndarray]:
    return [values.min(axis=0), np.median(values, axis=0), values.max(axis=0)] if values.size else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES]) + (" …" if len(names) > NAMES else "")


def _each_once(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))
