"""Choose layers of a network by parts of their names."""

from __future__ import annotations

from collections.abc import Sequence


def has_part(layer: str, parts: Sequence[str]) -> bool:
    """Whether the name of a layer has one of ``parts``, such as ``norm`` or ``decoder.stages.5``, between its dots."""
    return any(f".{part}." in f".{layer}." for part in parts)
