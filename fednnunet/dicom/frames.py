"""Frames of a segmentation on the slices of its series, by their positions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fednnunet.dicom.headers import SEGMENTATIONS
from fednnunet.dicom.label_map import Overlaps, add_mask
from fednnunet.dicom.series import Series
from fednnunet.errors import DataError, one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

OFF_GRID = 0.1
"""Part of the smallest spacing by which a frame may lie off the grid of its series."""


def draw_frames(
    dataset: Dataset, series: Series, values: Mapping[int, int] | None, path: Path, overlaps: Overlaps
) -> np.ndarray:
    """Segments of a SEG as a label map (Z, Y, X), uint16; arguments as of ``read_segmentation``."""
    from highdicom.seg import Segmentation

    if dataset.SOPClassUID not in SEGMENTATIONS:
        raise DataError(f"{path} is no DICOM segmentation (SEG)")
    kind = str(dataset.SegmentationType)
    if kind not in ("BINARY", "LABELMAP"):
        raise DataError(f"{path} is a {kind} segmentation, with parts of voxels; give one that is BINARY or LABELMAP")
    frame_of_reference = str(dataset.get("FrameOfReferenceUID", ""))
    if frame_of_reference and series.frame_of_reference and frame_of_reference != series.frame_of_reference:
        raise DataError(f"{path} lies in another coordinate system (FrameOfReferenceUID) than {series.where}")
    numbers = set(names_of(dataset)) | {0}
    given = {number: number for number in numbers} if values is None else {0: 0, **values}
    segmentation = Segmentation.from_dataset(dataset, copy=False)
    array = np.zeros(series.shape, dtype=np.uint16)
    for frame, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        place = array[_slice_of(dataset, groups, series, f"{path}: frame {frame}")]
        stored = segmentation.get_stored_frame(frame)
        if kind == "BINARY":
            number = int(_group(dataset, groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            add_mask(place, stored != 0, given.get(number, 0), str(path), overlaps)
            continue
        for number in np.unique(stored).tolist():
            if number not in numbers:
                raise DataError(f"{path}: frame {frame} holds the value {number}, which is none of its segments")
            add_mask(place, stored == number, given.get(number, 0), str(path), overlaps)
    return array


def _slice_of(dataset: Dataset, groups: Dataset, series: Series, where: str) -> int:
    """Which slice of the series a frame lies on, by three of its corners."""
    orientation = _group(dataset, groups, "PlaneOrientationSequence").ImageOrientationPatient
    row_spacing, column_spacing = _group(dataset, groups, "PixelMeasuresSequence").PixelSpacing
    origin = np.array(_group(dataset, groups, "PlanePositionSequence").ImagePositionPatient, dtype=np.float64)
    shape = int(dataset.Rows), int(dataset.Columns)
    if shape != series.shape[1:]:
        raise DataError(f"{where} has {shape} rows and columns, {series.where} {series.shape[1:]}; resample it")
    along_x = np.array(orientation[:3], dtype=np.float64) * float(column_spacing) * (shape[1] - 1)
    along_y = np.array(orientation[3:], dtype=np.float64) * float(row_spacing) * (shape[0] - 1)
    direction = np.array(series.stack.direction).reshape(3, 3)
    spacing_x, spacing_y, spacing_z = series.stack.spacing
    positions = series.positions
    index = int(np.argmin(np.abs((positions - origin) @ direction[:, 2])))
    off = [
        origin - positions[index],
        along_x - direction[:, 0] * spacing_x * (shape[1] - 1),
        along_y - direction[:, 1] * spacing_y * (shape[0] - 1),
    ]
    farthest = max(float(np.linalg.norm(off[0] + part)) for part in (np.zeros(3), off[1], off[2]))
    if farthest > OFF_GRID * min(spacing_x, spacing_y, spacing_z):
        raise DataError(f"{where} lies {farthest:.3g} mm off the grid of {series.where}; resample it onto that grid")
    return index


def _group(dataset: Dataset, groups: Dataset, keyword: str) -> Dataset:
    """A functional group of a frame, its own or the one that all share."""
    own = groups.get(keyword)
    return own[0] if own else dataset.SharedFunctionalGroupsSequence[0][keyword].value[0]


def names_of(dataset: Dataset) -> dict[int, str]:
    """Number to label of the segments, without background."""
    return {
        int(item.SegmentNumber): one_line(str(item.get("SegmentLabel", "")).strip())
        for item in dataset.SegmentSequence
        if int(item.SegmentNumber)
    }
