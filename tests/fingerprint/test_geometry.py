"""Order statistics by counting find what nnU-Net's planner reads of the pooled cases, and made-up cases keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from fednnunet.exchange.quantities import AXES, MAX_AT_ONCE, MAX_POINTS, Quantity
from fednnunet.fingerprint.geometry import (
    EXACT_QUESTIONS,
    GRIDS,
    NOISY_QUESTIONS,
    CaseSizes,
    check_counts,
    count_below,
)
from fednnunet.fingerprint.made_up_cases import AxisStatistics, Statistics, made_up_axis
from fednnunet.fingerprint.order_statistics import GeometrySearch

GRID_STEP = 2 ** (1 / 2048) - 1


def sizes_of(spacings: Any, shapes: Any, relative: Any = None) -> CaseSizes:
    spacings = np.array(spacings, float)
    return CaseSizes(spacings, np.array(shapes, float), np.ones(len(spacings)) if relative is None else relative)


def search(nodes: Sequence[CaseSizes], noise: float = 0.0, seed: int = 0) -> tuple[Statistics, int, int]:
    """What is found, in how many sets of how many questions."""
    rng, sets, asked = np.random.default_rng(seed), 0, 0
    found = GeometrySearch(sum(len(node.spacings) for node in nodes), noise * len(nodes) ** 0.5)
    while questions := found.questions():
        counts = [count_below(node, questions) for node in nodes]
        sums = {
            q: {n: sum(c[q][place] + round(rng.normal(0, noise)) for c in counts) for place, n in enumerate(numbers)}
            for q, numbers in questions.items()
        }
        assert all(len(numbers) <= MAX_AT_ONCE for numbers in questions.values())
        sets, asked = sets + 1, asked + sum(map(len, questions.values()))
        found.add(sums)
    return found.statistics(), sets, asked


# counting ----------------------------------------------------------------------------------------------


def test_cases_at_a_point_do_not_lie_below_it() -> None:
    sizes = sizes_of([[1, 0.5, 2], [2, 0.5, 2], [4, 0.5, 2]], [[8, 64, 64]] * 3, np.array([0.7, 0.75, 0.8]))
    one, two = (int(np.searchsorted(GRIDS[Quantity.SPACING_Z].points, mm)) for mm in (1, 2))
    asked = {Quantity.SPACING_Z: [one, two, two + 1], Quantity.RELATIVE_SIZE: [0]}
    assert count_below(sizes, asked) == {Quantity.SPACING_Z: [0, 1, 2], Quantity.RELATIVE_SIZE: [1]}


def test_an_extent_is_spacing_times_shape() -> None:
    points = GRIDS[Quantity.EXTENT_Y].points
    below, above = (int(np.searchsorted(points, mm)) for mm in (32, 32.1))
    assert count_below(sizes_of([[1, 0.5, 1]], [[8, 64, 8]]), {Quantity.EXTENT_Y: [below, above]}) == {
        Quantity.EXTENT_Y: [0, 1]
    }


def test_no_finer_points_than_those_of_the_grid_can_be_asked_about() -> None:
    assert max(len(grid.points) for grid in GRIDS.values()) < MAX_POINTS
    for grid in GRIDS.values():
        assert (np.diff(grid.points) >= 0.99 * GRID_STEP * grid.points[:-1] - grid.whole).all()
    with pytest.raises(ValueError, match="relative_size has no grid point 1"):
        count_below(sizes_of([[1, 1, 1]], [[8, 8, 8]]), {Quantity.RELATIVE_SIZE: [1]})


# search ------------------------------------------------------------------------------------------------

DIGITS = st.integers(100, 9999)


@st.composite
def federations(draw: st.DrawFn) -> list[CaseSizes]:
    """One to four nodes with spacings of few digits and any shapes, also 2D images (999 mm, one voxel)."""
    nodes = []
    flat = draw(st.booleans())
    for _ in range(draw(st.integers(1, 4))):
        cases = draw(st.integers(1, 9))
        spacings = np.array([[draw(DIGITS) / 1000 for _ in AXES] for _ in range(cases)])
        shapes = np.array([[draw(st.integers(1, 700)) for _ in AXES] for _ in range(cases)])
        if flat:
            spacings[:, 0], shapes[:, 0] = 999, 1
        nodes.append(sizes_of(spacings, shapes, np.array([draw(st.floats(0.1, 1)) for _ in range(cases)])))
    return nodes


@settings(max_examples=40, deadline=None)
@example([sizes_of([[0.501, 0.1, 0.1], [0.1, 0.1, 0.1]], [[1, 1, 1], [1, 1, 1]])])  # coarse in one of two cases
@given(federations())
def test_made_up_cases_have_what_the_planner_reads(nodes: list[CaseSizes]) -> None:
    statistics, sets, asked = search(nodes)
    found, spacings, shapes = (
        statistics.fingerprint(),
        np.vstack([n.spacings for n in nodes]),
        np.vstack([n.shapes for n in nodes]),
    )
    assert sets <= 45
    assert asked <= EXACT_QUESTIONS
    ours, theirs = np.median(found["spacings"], 0), np.median(spacings, 0)
    assert ours == pytest.approx(theirs, rel=GRID_STEP)
    assert np.median(found["shapes_after_crop"], 0).tolist() == np.median(shapes, 0).tolist()
    worst = int(np.argmax(theirs))
    if theirs[worst] > 3 * np.delete(theirs, worst).max():
        tenths = [np.percentile(np.array(s)[:, worst], 10) for s in (found["spacings"], spacings)]
        assert tenths[0] == pytest.approx(tenths[1], rel=GRID_STEP)
    new = [
        np.median([compute_new_shape(n, s, theirs) for n, s in zip(ns, ss, strict=True)], 0)
        for ns, ss in ((found["shapes_after_crop"], found["spacings"]), (shapes, spacings))
    ]
    assert new[0] == pytest.approx(new[1], rel=GRID_STEP, abs=1)
    relative = np.concatenate([node.relative_sizes for node in nodes])
    below = np.sum(relative < 0.75)
    if 2 * below != len(relative):
        assert (found["median_relative_size_after_cropping"] < 0.75) == (np.median(relative) < 0.75)


def test_values_of_few_digits_are_found_as_they_are() -> None:
    statistics, sets, asked = search([sizes_of([[3, 0.7, 0.7]] * 5, [[40, 512, 300]] * 5)])
    assert [axis.spacing for axis in statistics.axes] == [3, 0.7, 0.7]
    assert [axis.shapes for axis in statistics.axes] == [(40, 40), (512, 512), (300, 300)]
    assert statistics.axes[0].tenth == 3
    assert statistics.axes[1].tenth is None
    assert not statistics.cropped
    assert sets <= 20
    assert asked <= 150


def test_who_holds_a_case_makes_no_difference() -> None:
    rng = np.random.default_rng(0)
    spacings, shapes = rng.uniform(0.5, 5, (40, 3)), rng.integers(20, 600, (40, 3))
    pooled = search([sizes_of(spacings, shapes)])
    assert search([sizes_of(spacings[i : i + 10], shapes[i : i + 10]) for i in range(0, 40, 10)]) == pooled


def test_with_noise_the_questions_are_those_of_the_budget_and_the_medians_near() -> None:
    rng = np.random.default_rng(1)
    spacings = np.stack([rng.triangular(1, 2, 3, 3000), *[rng.triangular(0.5, 0.7, 0.9, 3000)] * 2], 1)
    shapes = np.stack([rng.integers(60, 200, 3000), *[np.full(3000, 512)] * 2], 1)
    statistics, _, asked = search([sizes_of(spacings, shapes)], noise=11)
    assert asked <= NOISY_QUESTIONS
    assert [axis.spacing for axis in statistics.axes] == pytest.approx(np.median(spacings, 0).tolist(), rel=0.02)
    assert statistics.axes[1] == statistics.axes[2]  # noise alone would tell rows from columns
    assert statistics.axes[1].shapes == (512, 512)
    assert statistics.axes[1].extents[0] == statistics.axes[1].spacing * 512
    assert statistics.axes[0].tenth == pytest.approx(np.percentile(spacings[:, 0], 10), rel=0.04)


# counts of a node --------------------------------------------------------------------------------------

ASKED = {Quantity.SHAPE_Z: [10, 20]}


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ({Quantity.SHAPE_Z: [1]}, "other points"),
        ({Quantity.SHAPE_Y: [1, 2]}, "other points"),
        ({}, "other points"),
        ({Quantity.SHAPE_Z: [3, 2]}, "fall"),
        ({Quantity.SHAPE_Z: [1, 3]}, "fall"),
        ({Quantity.SHAPE_Z: [-1, 2]}, "fewer than none"),
        ({Quantity.SHAPE_Z: [1, 6]}, "more than all of 5 cases"),
    ],
)
def test_counts_that_no_cases_have_are_refused(counts: dict[Quantity, list[int]], problem: str) -> None:
    earlier = {Quantity.SHAPE_Z: {15: 1, 30: 2}}
    with pytest.raises(ValueError, match=problem):
        check_counts(counts, ASKED, earlier, cases=5)


def test_noise_may_make_counts_fall_and_leave_their_range_a_little() -> None:
    noisy = {Quantity.SHAPE_Z: [3, -2]}
    assert check_counts(noisy, ASKED, {}, cases=5, noise=2.0) == {Quantity.SHAPE_Z: {10: 3, 20: -2}}
    with pytest.raises(ValueError, match="fewer than none"):
        check_counts({Quantity.SHAPE_Z: [3, -21]}, ASKED, {}, cases=5, noise=2.0)


# made-up cases -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.1, 999),
    st.floats(0.05, 1),
    st.tuples(st.integers(1, 700), st.integers(0, 30)),
    st.tuples(st.floats(1, 900), st.floats(0, 5)),
)
def test_made_up_cases_have_the_order_statistics_given(
    spacing: float, part: float, shape: tuple[int, int], extent: tuple[float, float]
) -> None:
    """Any shapes and extents, however unlike: an extent is never below its spacing."""
    extents = (extent[0] * spacing, (extent[0] + extent[1]) * spacing)
    axis = AxisStatistics(spacing, (shape[0], sum(shape)), extents, part * spacing)
    spacings, shapes = (np.array(values) for values in made_up_axis(axis))
    assert np.percentile(spacings, [10, 50]) == pytest.approx([part * spacing, spacing])
    assert np.sort(shapes)[[12, 13]].tolist() == [shape[0], sum(shape)]
    assert np.sort(spacings * shapes)[[12, 13]] == pytest.approx(extents)
    assert shapes.min() >= 1
