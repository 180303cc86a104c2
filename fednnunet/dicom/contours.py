"""Closed contours on a slice, as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SNAP = 0.01
"""Part of a pixel: points this near a pixel's centre were meant to be there, and were rounded in the file."""
ON_EDGE = 1e-6
"""Part of a pixel by which a centre may lie beside an edge that runs through it."""


class CrossingContoursError(ValueError):
    """Two contours on one slice of which neither lies within the other."""


@dataclass(frozen=True)
class Filled:
    """Pixels (Y, X) of a contour.

    Attributes:
        inside: centres within it, by the even-odd rule: a keyhole path leaves its hole out.
        edge: centres on it.
    """

    inside: np.ndarray
    edge: np.ndarray


def fill(points: np.ndarray, shape: tuple[int, int]) -> Filled:
    """Pixels of a closed contour; one or two points are a pixel or a line.

    Args:
        points: corners (N, 2) as column and row, where pixel centres are whole numbers.
        shape: rows and columns of the slice.
    """
    near = np.rint(points)
    points = np.where(np.abs(points - near) <= SNAP, near, points)
    rows, columns = shape
    edge = np.zeros(shape, dtype=bool)
    one, other = points, np.roll(points, -1, axis=0)
    is_level = one[:, 1] == other[:, 1]
    for (x0, y), (x1, _) in zip(one[is_level], other[is_level], strict=True):
        _mark(edge, np.arange(np.ceil(min(x0, x1)), np.floor(max(x0, x1)) + 1), y)
    is_down = (one[:, 1] < other[:, 1])[:, None]
    top, bottom = np.where(is_down, one, other)[~is_level], np.where(is_down, other, one)[~is_level]
    first, last = np.maximum(np.ceil(top[:, 1]), 0), np.minimum(np.floor(bottom[:, 1]), rows - 1)
    counts = np.maximum(last - first + 1, 0).astype(np.int64)  # rows that each edge crosses
    which = np.repeat(np.arange(len(counts)), counts)
    y = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    slope = (bottom[:, 0] - top[:, 0]) / (bottom[:, 1] - top[:, 1])
    x = top[which, 0] + (y - top[which, 1]) * slope[which]
    _mark(edge, x, y)
    below = y < bottom[which, 1]  # a corner between two edges counts once
    toggles = np.zeros((rows, columns + 1), dtype=np.int64)
    right = np.clip(np.floor(x[below] + ON_EDGE) + 1, 0, columns).astype(np.int64)
    np.add.at(toggles, (y[below].astype(np.int64), right), 1)
    inside = (np.cumsum(toggles, axis=1)[:, :columns] % 2).astype(bool)
    return Filled(inside & ~edge, edge)


def fill_all(contours: Sequence[np.ndarray], shape: tuple[int, int], *, exclusive: bool) -> np.ndarray:
    """Pixels (Y, X) of all contours of a structure on one slice.

    A contour within another is a hole, one within a hole an island. Pixels on any contour belong to the structure: a
    contour drawn around a mask runs through the centres of its outermost pixels.

    Args:
        contours: corners (N, 2) of each as column and row.
        shape: rows and columns of the slice.
        exclusive: whether contours may cross, and what two of them hold is outside.

    Raises:
        CrossingContoursError: two contours cross, or are the same, and ``exclusive`` does not say what that means.
    """
    filled = [fill(points, shape) for points in contours]
    if not exclusive:
        for place, one in enumerate(filled):
            for other in filled[:place]:
                _check_nested(one, other)
    inside = np.zeros(shape, dtype=bool)
    edge = np.zeros(shape, dtype=bool)
    for part in filled:
        inside ^= part.inside
        edge |= part.edge
    return inside | edge


def _check_nested(one: Filled, other: Filled) -> None:
    """Refuse two contours that overlap unless one lies within the other."""
    if not (one.inside & other.inside).any():
        return
    if (one.inside & ~(other.inside | other.edge)).any() and (other.inside & ~(one.inside | one.edge)).any():
        raise CrossingContoursError("two contours cross")
    if np.array_equal(one.inside, other.inside) and np.array_equal(one.edge, other.edge):
        raise CrossingContoursError("a contour is there twice")


def _mark(edge: np.ndarray, x: np.ndarray, y: np.ndarray | float) -> None:
    """Mark pixels whose centres lie at places ``x`` in rows ``y``."""
    columns, rows = np.rint(x), np.broadcast_to(np.rint(y), x.shape)
    at = (np.abs(x - columns) <= ON_EDGE) & (np.abs(rows - y) <= ON_EDGE)
    at &= (columns >= 0) & (columns < edge.shape[1]) & (rows >= 0) & (rows < edge.shape[0])
    edge[rows[at].astype(np.int64), columns[at].astype(np.int64)] = True
