"""Whether two images lie on one grid: the differences as data; callers decide what is an error and what a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1e-3
"""mm; the headers of one case's images and label map may differ by rounding."""
STOPS_NNUNET = {"shape": "", "spacing": " mm"}
"""Differences between an image and its label map that nnU-Net stops at, and their units; it ignores the others."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie.

    Attributes:
        shape: number of voxels along each axis.
        placement: what the file says beyond the shape, such as ``spacing`` (mm), ``origin`` (mm), ``direction`` or
            ``affine matrix``, in the order in which differences are reported.
    """

    shape: tuple[int, ...]
    placement: Mapping[str, Any]


@dataclass(frozen=True)
class GridDifference:
    """One property in which two grids differ.

    Attributes:
        what: ``shape``, or a key of :attr:`Grid.placement`.
        value: value of the first grid.
        reference: value of the second grid.
    """

    what: str
    value: Any
    reference: Any


def grid_differences(grid: Grid, reference: Grid) -> list[GridDifference]:
    """All properties in which ``grid`` differs from ``reference``; only the shape where that differs.

    Numbers within :data:`TOLERANCE` are the same.
    """
    if grid.shape != reference.shape:
        return [GridDifference("shape", grid.shape, reference.shape)]  # everything else follows from it
    return [
        GridDifference(what, value, reference.placement[what])
        for what, value in grid.placement.items()
        if not _is_close(value, reference.placement[what])
    ]


def grid_of(voxels: np.ndarray, properties: dict[str, Any]) -> Grid:
    """Grid of a file read by one of nnU-Net's readers.

    Args:
        voxels: (C, Z, Y, X).
        properties: returned with them.
    """
    return Grid(voxels.shape[1:], {"spacing": properties["spacing"], **orientation_of(properties)})


def orientation_of(properties: dict[str, Any]) -> dict[str, Any]:
    """Origin and direction, or affine matrix, as far as the properties of nnU-Net's readers hold them."""
    if "sitk_stuff" in properties:
        return {what: properties["sitk_stuff"][what] for what in ("origin", "direction")}
    if "nibabel_stuff" in properties:
        return {"affine matrix": properties["nibabel_stuff"]["original_affine"]}
    return {}


def format_size(values: Iterable[float]) -> str:
    """Sizes along the axes as text, such as ``8 x 64 x 64``."""
    return " x ".join(f"{value:g}" for value in values)


def format_numbers(values: Any) -> str:
    """Numbers of a header, of whatever shape, as text: ``(1, 0.5, 3)``."""
    return "(" + ", ".join(f"{value:.4g}" for value in np.asarray(values, dtype=float).ravel()) + ")"


def _is_close(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.allclose(one, other, atol=TOLERANCE)
