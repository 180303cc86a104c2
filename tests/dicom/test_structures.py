"""Contours become the pixels that they were drawn around, whatever the geometry of their slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from skimage.measure import grid_points_in_poly

from fednnunet.dicom.contours import fill
from fednnunet.dicom.series import Series
from fednnunet.dicom.structures import read_structures, referenced_series, structure_names
from fednnunet.errors import DataError
from tests.support.dicom_series import ORIENTATIONS, change_file, find_series, phantom_voxels, write_series
from tests.support.structure_sets import Contour, write_structures

SHAPE = (5, 6, 9)  # images and pixels are not square


def rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def draw(folder: Path, contours: list[Contour], kind: str = "CLOSED_PLANAR", **options: Any) -> np.ndarray:
    """The structure of some contours on a series."""
    paths = write_series(folder / "series", phantom_voxels(SHAPE), **options)
    path = write_structures(folder / "rt.dcm", paths, {"tumour": contours}, kind)
    return read_structures(path, find_series(folder / "series")[0], {1: 1})


def rows(mask: np.ndarray) -> list[str]:
    """A slice as text."""
    return ["".join(".#"[int(value)] for value in row) for row in mask]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_rectangle_covers_its_corners_and_rim(tmp_path: Path, orientation: str) -> None:
    array = draw(tmp_path, [(2, rectangle(3, 1, 7, 4))], orientation=ORIENTATIONS[orientation])
    assert rows(array[2]) == [".........", "...#####.", "...#####.", "...#####.", "...#####.", "........."]
    assert not array[[0, 1, 3, 4]].any()


def test_slices_from_the_top_and_shuffled_names_keep_their_contours(tmp_path: Path) -> None:
    array = draw(
        tmp_path, [(0, rectangle(0, 0, 8, 5))], spacing=(0.6, 0.8, -2.5), names=lambda index: f"IM{index * 3 % 5}"
    )
    assert array[4].all()
    assert not array[:4].any()


def test_a_pixel_and_lines_are_kept(tmp_path: Path) -> None:
    contours: list[Contour] = [
        (0, [(4, 2)]),
        (1, [(1, 1), (6, 1)]),
        (2, [(5, 1), (5, 4), (5, 1)]),
        (3, [(1, 1), (4, 4)]),
    ]
    array = draw(tmp_path, contours)
    assert np.argwhere(array[0]).tolist() == [[2, 4]]
    assert rows(array[1])[1] == ".######.."
    assert np.argwhere(array[2]).tolist() == [[row, 5] for row in range(1, 5)]
    assert np.argwhere(array[3]).tolist() == [[step, step] for step in range(1, 5)]


RING = [".........", ".#######.", ".#.....#.", ".#.....#.", ".#######.", "........."]


def test_a_contour_within_another_is_a_hole_and_one_within_that_an_island(tmp_path: Path) -> None:
    outer, hole, island = rectangle(0, 0, 8, 5), rectangle(0.5, 0.5, 7.5, 4.5), rectangle(3, 2, 5, 3)
    array = draw(tmp_path, [(0, outer), (0, hole), (0, island), (1, rectangle(0.5, 0.5, 7.5, 4.5))])
    assert rows(array[0]) == ["#########", "#.......#", "#..###..#", "#..###..#", "#.......#", "#########"]
    assert rows(array[1])[1] == ".#######."


def test_the_pixels_that_a_holes_contour_runs_through_belong_to_the_structure(tmp_path: Path) -> None:
    array = draw(tmp_path, [(0, rectangle(0, 0, 8, 5)), (0, rectangle(2, 1, 6, 4))])
    assert rows(array[0]) == ["#########", "#########", "###...###", "###...###", "#########", "#########"]


def test_a_keyhole_leaves_its_hole_out(tmp_path: Path) -> None:
    outer = [(1, 1), (7, 1), (7, 4), (1, 4)]
    hole = [(1.5, 1.5), (1.5, 3.5), (6.5, 3.5), (6.5, 1.5), (1.5, 1.5)]
    array = draw(tmp_path, [(0, [*outer, (1, 1), *hole, (1, 1)])])
    assert rows(array[0]) == RING


def test_exclusive_contours_may_cross(tmp_path: Path) -> None:
    contours: list[Contour] = [(0, rectangle(0.5, 0.5, 4.5, 3.5)), (0, rectangle(2.5, 1.5, 6.5, 4.5))]
    array = draw(tmp_path, contours, "CLOSEDPLANAR_XOR")
    assert rows(array[0]) == [".........", ".####....", ".##..##..", ".##..##..", "...####..", "........."]
    with pytest.raises(DataError, match=r"structure 'tumour': two contours cross at 30 mm"):
        draw(tmp_path / "closed", contours)


def test_contours_at_the_rims_of_pixels_are_read(tmp_path: Path) -> None:
    array = draw(tmp_path, [(1, rectangle(-0.5, -0.5, 8.5, 2.5))])
    assert rows(array[1]) == ["#########"] * 3 + ["........."] * 3


@pytest.mark.parametrize("seed", range(20))
def test_any_polygon_is_filled_as_scikit_image_fills_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.integers(0, 12, size=(random.integers(3, 9), 2)) / random.choice([1, 1, 2, 4])
    filled = fill(corners, (11, 13))
    on_edge = np.zeros((11, 13), dtype=bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        for row, column in np.ndindex(11, 13):  # at no distance from the segment
            to_a, to_b = a - (column, row), b - (column, row)
            on_edge[row, column] |= to_a[0] * to_b[1] == to_a[1] * to_b[0] and to_a @ to_b <= 0
    np.testing.assert_array_equal(filled.edge, on_edge)
    labels = grid_points_in_poly((11, 13), corners[:, ::-1], binarize=False)  # misses where two edges cross
    np.testing.assert_array_equal(filled.inside, (labels == 1) & ~on_edge)


def test_structures_that_overlap_are_refused_or_the_higher_value_wins(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", phantom_voxels(SHAPE))
    series = find_series(tmp_path / "series")[0]
    path = write_structures(
        tmp_path / "rt.dcm", paths, {"tumour": [(1, rectangle(2, 2, 4, 3))], "liver": [(1, rectangle(0, 0, 6, 5))]}
    )
    assert structure_names(path) == {1: "tumour", 2: "liver"}
    assert referenced_series(path) == {series.uid}
    with pytest.raises(DataError, match=r"structure 'liver': 6 voxels are in two structures"):
        read_structures(path, series, {1: 2, 2: 1})
    array = read_structures(path, series, {1: 2, 2: 1}, "highest")
    assert (array == 2).sum() == 6
    assert (array == 1).sum() == 42 - 6
    assert (read_structures(path, series, {2: 1}) == 1).sum() == 42


@pytest.mark.parametrize(
    ("contours", "kind", "words"),
    [
        ([], "CLOSED_PLANAR", "has no contour"),
        ([(0, [(1, 1)])], "POINT", "holds POINT, which has no inside"),
        ([(0, [(1, 1), (2, 2)])], "OPEN_PLANAR", "holds OPEN_PLANAR, which has no inside"),
        ([(0, rectangle(1, 1, 9, 3))], "CLOSED_PLANAR", "leaves the image"),
        ([(1, rectangle(1, 1, 4, 3))] * 2, "CLOSED_PLANAR", "a contour is there twice at 32.5 mm"),
        ([(n, rectangle(1, 1, 4, 3)) for n in (0, 2, 4)], "CLOSED_PLANAR", r"is drawn on every 2\. slice only"),
    ],
)
def test_contours_without_a_clear_meaning_are_refused(
    tmp_path: Path, contours: list[Contour], kind: str, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        draw(tmp_path, contours, kind)
    assert "rt.dcm: structure 'tumour'" in str(caught.value)


def drawn(folder: Path) -> tuple[Path, Series]:
    paths = write_series(folder / "series", phantom_voxels(SHAPE))
    path = write_structures(folder / "rt.dcm", paths, {"tumour": [(2, rectangle(1, 1, 4, 3))]})
    return path, find_series(folder / "series")[0]


def test_contours_off_the_slices_are_refused(tmp_path: Path) -> None:
    path, series = drawn(tmp_path)
    dataset = pydicom.dcmread(path)
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [
        float(value) + (1.0 if place % 3 == 2 else 0) for place, value in enumerate(contour.ContourData)
    ]
    dataset.save_as(path)
    with pytest.raises(DataError, match=r"a contour at 36 mm lies 1 mm off the nearest slice \(they lie 2.5 mm apart"):
        read_structures(path, series, {1: 1})


def test_contours_of_another_series_or_coordinate_system_are_refused(tmp_path: Path) -> None:
    path, series = drawn(tmp_path)
    write_series(tmp_path / "other", phantom_voxels(SHAPE), frame_of_reference=series.frame_of_reference)
    with pytest.raises(DataError, match="was drawn on another series"):
        read_structures(path, find_series(tmp_path / "other")[0], {1: 1})
    change_file(path, ReferencedFrameOfReferenceSequence=[])
    assert read_structures(path, find_series(tmp_path / "other")[0], {1: 1}).sum() == 12
    write_series(tmp_path / "third", phantom_voxels(SHAPE))
    with pytest.raises(DataError, match="another coordinate system"):
        read_structures(path, find_series(tmp_path / "third")[0], {1: 1})


def test_other_files_are_refused(tmp_path: Path) -> None:
    _, series = drawn(tmp_path)
    for read in (lambda: structure_names(series.files[0]), lambda: read_structures(series.files[0], series, {1: 1})):
        with pytest.raises(DataError, match=r"slice_000.dcm is no"):
            read()
