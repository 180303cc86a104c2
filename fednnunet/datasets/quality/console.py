"""Tables of centres' images and labels, and the list of likely training problems, for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednnunet.datasets.quality.summary import SHARES, CentreSummary, DataIssue, channels_of, labels_of

MARKS = {"warning": ("!", "yellow"), "bad": ("✗", "red")}
NAMES = 3
"""Number of cases that a warning names."""
NOTHING = "–"


def show_summary(centres: Sequence[CentreSummary], issues: Sequence[DataIssue], console: Console) -> None:
    """Print the tables, then the likely training problems."""
    for table in (images_table(centres), intensities_table(centres), labels_table(centres)):
        console.print(table)
    if not issues:
        console.print("No likely training problems found.")
    for issue in issues:
        mark, colour = MARKS[issue.severity]
        console.print(Text.assemble((mark, colour), f" {sentence(issue)}"), soft_wrap=True)
        console.print(Text(f"  → {issue.advice}", style=colour), soft_wrap=True)


def sentence(issue: DataIssue) -> str:
    """Centre, kind, affected cases, and what was found."""
    counted = f"{len(issue.cases)} of {issue.total} cases ({_some(issue.cases)}); " if issue.cases else ""
    return f"{issue.centre}, {issue.kind}: {counted}{issue.found}"


def as_json(centres: Sequence[CentreSummary], issues: Sequence[DataIssue]) -> str:
    """The summaries with every case, and the likely training problems, as JSON."""
    found = {
        "centres": [centre.as_dict() for centre in centres],
        "issues": [vars(issue) for issue in issues],
    }
    return json.dumps(found, indent=1)


def images_table(centres: Sequence[CentreSummary]) -> Table:
    """Cases, shapes, spacings and orientations; three lines per centre."""
    table = _table("Images", "centre", "cases", "", "shape (Z, Y, X)", "spacing in mm", "orientation")
    for centre in centres:
        name = f"{centre.name}\n(external)" if centre.external else centre.name
        orientations = [f"{name}: {number}" for name, number in centre.orientations.most_common()]
        shapes, spacings = (
            _lines(values, digits) for values, digits in ((centre.shapes, "g"), (centre.spacings, ".3g"))
        )
        table.add_row(
            name,
            str(centre.number),
            "min\nmedian\nmax",
            shapes,
            spacings,
            "\n".join(orientations) or NOTHING,
            end_section=True,
        )
    return table


def intensities_table(centres: Sequence[CentreSummary]) -> Table:
    """Percentiles of every channel over a case's voxels that are not 0, as the median over cases."""
    low, _, high = (f"{share:g} %" for share in SHARES)
    table = _table("Intensities, median over cases", "channel", "centre", low, "median", high)
    for number, name in channels_of(centres):
        having = [centre for centre in centres if centre.cases and number < len(centre.channels)]
        for place, centre in enumerate(having):
            values = np.median(centre.intensities(number), axis=0)
            cells = [_number(value) for value in values]
            table.add_row(name if place == 0 else "", centre.name, *cells, end_section=centre is having[-1])
    return table


def labels_table(centres: Sequence[CentreSummary]) -> Table:
    """Number of cases that have each label, and its volume in these."""
    table = _table("Labels, volumes where present", "label", "centre", "cases with it", "min", "median", "max", "unit")
    for label in labels_of(centres):
        having = [centre for centre in centres if label in centre.labels and centre.cases]
        for place, centre in enumerate(having):
            volumes = centre.volumes(label)
            present = volumes[volumes > 0]
            cells = [_number(float(value)) for value in _spread(present)]
            table.add_row(
                label if place == 0 else "",
                centre.name,
                f"{present.size} of {volumes.size}",
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
    """Smallest, median and largest value on each axis, one per line."""
    if not values.size:
        return NOTHING
    return "\n".join("×".join(f"{value:{digits}}" for value in row) for row in _spread(values))


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _spread(values: np.ndarray) -> list[np.ndarray]:
    return [values.min(axis=0), np.median(values, axis=0), values.max(axis=0)] if values.size else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES]) + (" …" if len(names) > NAMES else "")
