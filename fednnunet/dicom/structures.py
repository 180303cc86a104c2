"""Structures of an RTSTRUCT on the grid of a series.

Contours are polygons in mm, drawn on slices. rt-utils 1.2.7 exchanges the axes where pixels or images are not square,
and readers that fill "centres inside" lose the outermost pixels of contours drawn around a mask; hence this reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fednnunet.dicom.contours import CrossingContoursError, fill_all
from fednnunet.dicom.gate import slack
from fednnunet.dicom.headers import STRUCTURES, read_dataset
from fednnunet.dicom.label_map import Overlaps, add_mask
from fednnunet.dicom.library import reading, require_dicom
from fednnunet.dicom.series import Series
from fednnunet.errors import DataError, one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UNREADABLE = "is no RTSTRUCT that can be read"
CLOSED, EXCLUSIVE = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"
BESIDE = 0.51
"""Pixels by which a point may lie beyond the centres of the outermost pixels: their rims."""


def structure_names(path: Path) -> dict[int, str]:
    """Number and name of each structure (ROI) of an RTSTRUCT.

    Raises:
        DataError: it is none; names the file.
    """
    require_dicom()
    with reading(f"{path} {UNREADABLE}"):
        return _names(read_dataset(path, keywords=("SOPClassUID", "StructureSetROISequence")), path)


def referenced_series(path: Path) -> set[str]:
    """UIDs of the series that an RTSTRUCT was drawn on; none where it does not say.

    Raises:
        DataError: it cannot be read; names the file.
    """
    with reading(f"{path} {UNREADABLE}"):
        return _referenced_series(read_dataset(path, keywords=("ReferencedFrameOfReferenceSequence",)))


def read_structures(path: Path, series: Series, values: Mapping[int, int], overlaps: Overlaps = "stop") -> np.ndarray:
    """Structures as a label map (Z, Y, X) on the grid of their series, uint16.

    Args:
        path: the RTSTRUCT.
        series: what the contours were drawn on.
        values: number of a structure to its value in the label map; others are left out.
        overlaps: what becomes of voxels in two structures.

    Raises:
        DataError: no RTSTRUCT; a structure without contours, or with points or open ones; a contour off the slices, off
            the image, or across another; voxels in two structures. Names the file and the structure.
        ConfigError: the extra ``dicom`` is not installed.
    """
    require_dicom()
    dataset = read_dataset(path)
    with reading(f"{path} {UNREADABLE}"):
        _check_source(dataset, series, path)
        names = _names(dataset, path)
        array = np.zeros(series.shape, dtype=np.uint16)
        for number, value in values.items():
            where = f"{path}: structure {names[number]!r}"
            _check_frame(dataset, number, series, where)
            for index, mask in _slices(_contours(dataset, number, series, where), series, where):
                add_mask(array[index], mask, value, where, overlaps)
        return array


def _names(dataset: Dataset, path: Path) -> dict[int, str]:
    if dataset.SOPClassUID not in STRUCTURES:
        raise DataError(f"{path} is no DICOM structure set (RTSTRUCT)")
    return {
        int(item.ROINumber): one_line(str(item.get("ROIName", "")).strip()) for item in dataset.StructureSetROISequence
    }


def _check_source(dataset: Dataset, series: Series, path: Path) -> None:
    """Refuse contours that were drawn on another series."""
    drawn_on = _referenced_series(dataset)
    if drawn_on and series.uid not in drawn_on:
        raise DataError(f"{path} was drawn on another series (SeriesInstanceUID) than {series.where}")


def _check_frame(dataset: Dataset, number: int, series: Series, where: str) -> None:
    """Refuse a structure in another coordinate system; one object may hold structures of several."""
    given = {
        str(item.get("ReferencedFrameOfReferenceUID", ""))
        for item in dataset.StructureSetROISequence
        if int(item.ROINumber) == number
    } - {""}
    if series.frame_of_reference and given and given != {series.frame_of_reference}:
        raise DataError(f"{where} lies in another coordinate system (FrameOfReferenceUID) than {series.where}")


def _referenced_series(dataset: Dataset) -> set[str]:
    return {
        str(one.SeriesInstanceUID)
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for one in study.get("RTReferencedSeriesSequence") or []
    }


def _contours(dataset: Dataset, number: int, series: Series, where: str) -> Iterator[tuple[str, int, np.ndarray]]:
    """Kind, slice and corners (N, 2) as column and row of each contour of a structure."""
    found = [item for item in dataset.get("ROIContourSequence") or [] if int(item.ReferencedROINumber) == number]
    contours = [contour for item in found for contour in item.get("ContourSequence") or []]
    if not contours:
        raise DataError(f"{where} has no contour; leave it out")
    for contour in contours:
        kind = one_line(str(contour.ContourGeometricType))
        if kind not in (CLOSED, EXCLUSIVE):
            raise DataError(f"{where} holds {kind}, which has no inside; leave it out")
        points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
        if not len(points) or not np.isfinite(points).all():
            raise DataError(f"{where} holds a contour without points, or of points that are no numbers")
        yield kind, *_on_slice(points, series, where)


def _on_slice(points: np.ndarray, series: Series, where: str) -> tuple[int, np.ndarray]:
    """The slice that a contour lies on, and its corners as column and row."""
    x, y, normal = np.array(series.stack.direction).reshape(3, 3).T
    heights = points @ normal
    slices = series.positions @ normal
    index = int(np.argmin(np.abs(slices - heights[0])))
    off = float(np.abs(heights - slices[index]).max())
    distance = series.spacing[2]
    if off > slack(distance):
        raise DataError(
            f"{where}: a contour at {heights[0]:.6g} mm lies {off:.3g} mm off the nearest slice (they lie "
            f"{distance:.4g} mm apart); a slice is missing, or it was drawn on another series"
        )
    relative = points - series.positions[index]
    corners = np.stack([relative @ x / series.spacing[0], relative @ y / series.spacing[1]], axis=1)
    limits = np.array([series.shape[2] - 1, series.shape[1] - 1])
    if (corners < -BESIDE).any() or (corners > limits + BESIDE).any():
        raise DataError(f"{where}: a contour at {heights[0]:.6g} mm leaves the image")
    return index, corners


def _slices(
    contours: Iterator[tuple[str, int, np.ndarray]], series: Series, where: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each slice that has contours, and their pixels (Y, X)."""
    by_slice: dict[int, list[tuple[str, np.ndarray]]] = {}
    for kind, index, corners in contours:
        by_slice.setdefault(index, []).append((kind, corners))
    drawn = sorted(by_slice)
    if len(drawn) > 2 and np.diff(drawn).min() > 1:
        raise DataError(
            f"{where} is drawn on every {np.diff(drawn).min()}. slice only; interpolate it where it was drawn"
        )
    for index in drawn:
        exclusive = any(kind == EXCLUSIVE for kind, _ in by_slice[index])
        try:
            shape = series.shape[1:]
            yield index, fill_all([corners for _, corners in by_slice[index]], shape, exclusive=exclusive)
        except CrossingContoursError as error:
            height = series.positions[index] @ np.array(series.stack.direction).reshape(3, 3)[:, 2]
            raise DataError(f"{where}: {error} at {height:.6g} mm; correct it where it was drawn") from None
