"""Many things in one line of text: lists of messages and of options, figures of nodes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

MOST_NODES = 12
"""Nodes of a run that are shown one by one; of more, all together are shown, and few by name."""


def join_all(texts: Sequence[str]) -> str:
    """All of one text or more.

    >>> join_all(["image", "label", "plans"])
    'image, label and plans'
    """
    return ", ".join(texts[:-1]) + (" and " if len(texts) > 1 else "") + texts[-1]


def join_first(texts: Sequence[str], most: int) -> str:
    """The first ``most`` texts, and how many more there are.

    >>> join_first(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def join_nodes(names: Sequence[str]) -> str:
    """Names of nodes: all of them up to :data:`MOST_NODES`, of more the first."""
    return join_first(names, MOST_NODES)


def spread(values: Mapping[str, float | None], decimals: int) -> str:
    """Median and ends of one number per node; a dash where none is known.

    >>> spread({"Oslo": 0.5, "Porto": 0.75, "Riga": None, "Vigo": 0.25}, decimals=2)
    'median 0.50, 0.25 (Vigo) to 0.75 (Porto)'
    """
    known = {node: value for node, value in values.items() if value is not None and math.isfinite(value)}
    if not known:
        return "–"
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    shown = {node: f"{known[node]:.{decimals}f}" for node in (low, high)}
    return f"median {statistics.median(known.values()):.{decimals}f}, {shown[low]} ({low}) to {shown[high]} ({high})"


def split_list(text: str) -> list[str]:
    """What stands between commas, but for nothing.

    >>> split_list("T1, T2,")
    ['T1', 'T2']
    """
    return [part.strip() for part in text.split(",") if part.strip()]
