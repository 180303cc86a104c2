"""Differences between two grids."""

from __future__ import annotations

import numpy as np
import pytest

from fednnunet.datasets.geometry import Grid, GridDifference, format_size, grid_differences, grid_of

PLACEMENT = {"spacing": (3.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0)}
GRID = Grid((6, 40, 40), PLACEMENT)


def test_rounding_in_headers_is_no_difference() -> None:
    assert grid_differences(Grid((6, 40, 40), {**PLACEMENT, "spacing": (3.0005, 1.0, 1.0)}), GRID) == []


@pytest.mark.parametrize("what", PLACEMENT)
def test_a_difference_holds_both_values(what: str) -> None:
    other = Grid(GRID.shape, {**PLACEMENT, what: (2.0, 1.0, 1.0)})
    assert grid_differences(other, GRID) == [GridDifference(what, (2.0, 1.0, 1.0), PLACEMENT[what])]


def test_all_differences_are_found_in_order() -> None:
    other = Grid(GRID.shape, {"spacing": (2.0, 1.0, 1.0), "origin": (5.0, 0.0, 0.0)})
    assert [difference.what for difference in grid_differences(other, GRID)] == ["spacing", "origin"]


def test_another_number_of_axes_is_a_difference() -> None:
    assert grid_differences(Grid(GRID.shape, {**PLACEMENT, "origin": (0.0, 0.0)}), GRID)[0].what == "origin"


def test_another_shape_hides_what_follows_from_it() -> None:
    other = Grid((5, 40, 40), {**PLACEMENT, "spacing": (2.0, 1.0, 1.0)})
    assert grid_differences(other, GRID) == [GridDifference("shape", (5, 40, 40), (6, 40, 40))]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"spacing": (1, 2)}, {"spacing": (1, 2)}),
        (
            {"spacing": (1, 2), "sitk_stuff": {"origin": (0,), "direction": (1,), "spacing": (2, 1)}},
            {"spacing": (1, 2), "origin": (0,), "direction": (1,)},
        ),
        ({"spacing": (1, 2), "nibabel_stuff": {"original_affine": (1,)}}, {"spacing": (1, 2), "affine matrix": (1,)}),
    ],
)
def test_grid_is_what_nnunets_readers_say(properties: dict, expected: dict) -> None:
    grid = grid_of(np.zeros((2, 6, 40, 40)), properties)
    assert grid.shape == (6, 40, 40)
    assert grid.placement == expected


def test_sizes_are_shown_axis_by_axis() -> None:
    assert format_size((8, 64, 0.5)) == "8 x 64 x 0.5"
