"""Label maps that are put together from masks."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fednnunet.errors import DataError

Overlaps = Literal["stop", "highest"]


def add_mask(place: np.ndarray, mask: np.ndarray, value: int, where: str, overlaps: Overlaps = "stop") -> None:
    """Give the voxels of ``mask`` a value, in place; 0 leaves all as it is.

    Args:
        place: part of the label map.
        mask: of the same shape.
        value: in the label map.
        where: what the mask is from.
        overlaps: ``stop``: a voxel that has another value is an error; ``highest``: it gets the higher of both.

    Raises:
        DataError: voxels have another value; begins with ``where``.
    """
    if not value:
        return
    taken = place[mask]
    if overlaps == "highest":
        place[mask] = np.maximum(taken, value)
        return
    both = (taken != 0) & (taken != value)
    if both.any():
        raise DataError(
            f"{where}: {int(both.sum()):,} voxels are in two structures, of the values {int(taken[both][0])} and "
            f"{value}; a label map has one per voxel: leave one out, or let the higher value win (--overlaps highest)"
        )
    place[mask] = value
