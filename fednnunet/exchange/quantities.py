"""What a node counts its cases by (``fingerprint.geometry=sums``), and the names of the counts in messages."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictInt

AXES = "zyx"
"""nnU-Net's order of axes."""
MAX_POINTS = 2**17
"""More than any quantity has grid points."""
MAX_AT_ONCE = 8
"""Most points of a quantity in a request: a bisection for each of four ranks needs fewer."""


class Quantity(StrEnum):
    """A size of a case; extents are spacing times shape."""

    SPACING_Z = "spacing_z"
    SPACING_Y = "spacing_y"
    SPACING_X = "spacing_x"
    SHAPE_Z = "shape_z"
    SHAPE_Y = "shape_y"
    SHAPE_X = "shape_x"
    EXTENT_Z = "extent_z"
    EXTENT_Y = "extent_y"
    EXTENT_X = "extent_x"
    RELATIVE_SIZE = "relative_size"

    @classmethod
    def of(cls, name: str, axis: int) -> Quantity:
        """The quantity ``spacing``, ``shape`` or ``extent`` of an axis, from 0."""
        return cls(f"{name}_{AXES[axis]}")


Questions = dict[
    Quantity,
    Annotated[list[Annotated[StrictInt, Field(ge=0, lt=MAX_POINTS)]], Field(min_length=1, max_length=MAX_AT_ONCE)],
]
"""Quantity to the numbers of grid points: how many cases lie below each?"""
Counts = dict[
    Quantity, Annotated[list[Annotated[StrictInt, Field(ge=-(2**31), lt=2**31)]], Field(max_length=MAX_AT_ONCE)]
]
"""Quantity to as many counts; with noise, also below 0; masked, any integers of 32 bits."""
