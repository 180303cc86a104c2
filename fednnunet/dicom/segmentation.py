"""Segmentations as DICOM SEG objects: written for a series, and read back onto its grid."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import fednnunet
from fednnunet.dicom.codes import Codes, Meaning, coded, load_codes
from fednnunet.dicom.headers import SEGMENTATIONS, read_dataset
from fednnunet.dicom.label_map import Overlaps, add_mask
from fednnunet.dicom.library import require_dicom, without_warnings
from fednnunet.dicom.series import Series
from fednnunet.errors import DataError, one_line

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset

Encoding = Literal["binary", "labelmap"]
Compression = Literal["none", "rle", "jpeg-ls"]
NATIVE = "1.2.840.10008.1.2.1"
SYNTAXES: Mapping[Compression, str] = {
    "none": NATIVE,
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
}
"""Transfer syntaxes for label maps; of binary segmentations pydicom and GDCM read the native one everywhere."""
TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Elements that may be empty, and not lacking; de-identification often deletes them."""
NOT_PREDICTED = ("background", "ignore")
MANUFACTURER = "FednnU-Net"
SERIES_NUMBER = 1000
"""Beyond those that scanners give."""
OFF_GRID = 0.1
"""Part of the smallest spacing by which a frame may lie off the grid of its series."""
LONGEST_LABEL = 64
"""Characters of a segment's label."""


def write_segmentation(
    path: Path,
    segmentation: np.ndarray,
    series: Series,
    labels: Mapping[str, int],
    codes: Codes | None = None,
    encoding: Encoding = "binary",
    compression: Compression = "rle",
    description: str = "Segmentation by FednnU-Net",
) -> None:
    """Write a label map as DICOM SEG that refers to the slices of its series; ``path`` appears once it is whole.

    Args:
        path: file to write.
        segmentation: integers (Z, Y, X) on the grid of ``series``.
        series: what was segmented; patient and study are copied from its files.
        labels: label name to value; ``background`` and ``ignore`` are no segments.
        codes: what the labels mean; the package's table if not given.
        encoding: ``binary``: a frame per slice and label, for every viewer; ``labelmap``: one per slice, which is
            small, and which few viewers read (DICOM 2024).
        compression: of a label map.
        description: SeriesDescription.

    Raises:
        DataError: another shape than the series, a value that is no label, a source without FrameOfReferenceUID, or
            something that highdicom refuses.
        ConfigError: the extra ``dicom`` is not installed.
    """
    require_dicom()
    numbers = _segment_numbers(labels)
    array = _numbered(segmentation, series, labels, numbers, path)
    check_sources(series)
    from highdicom import UID
    from highdicom.seg import Segmentation

    with without_warnings():
        try:
            made = Segmentation(
                source_images=_sources(series),
                pixel_array=array,
                segmentation_type=encoding.upper(),
                segment_descriptions=_segment_descriptions(labels, numbers, codes or load_codes()),
                series_instance_uid=UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MANUFACTURER,
                software_versions=fednnunet.__version__,
                device_serial_number="0",
                transfer_syntax_uid=SYNTAXES[compression] if encoding == "labelmap" else NATIVE,
                series_description=description,
            )
        except (AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{series.where}: no segmentation can refer to its files: {one_line(str(error))}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{path.name}")
        try:
            made.save_as(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def read_segmentation(
    path: Path, series: Series, values: Mapping[int, int] | None = None, overlaps: Overlaps = "stop"
) -> np.ndarray:
    """A SEG as a label map (Z, Y, X) on the grid of its series, uint16.

    Frames are placed by their positions, not by their order, which differs between writers.

    Args:
        path: the file.
        series: what was segmented.
        values: number of a segment to its value in the label map; others are left out. The numbers if not given.
        overlaps: what becomes of voxels in two segments.

    Raises:
        DataError: no SEG, or a fractional one; it lies on another grid than ``series``; a voxel is in two segments of
            different values. Names the file.
        ConfigError: the extra ``dicom`` is not installed.
    """
    require_dicom()
    dataset = read_dataset(path, pixels=True)
    try:
        with without_warnings():
            return _label_map(dataset, series, values, path, overlaps)
    except (AttributeError, KeyError, IndexError, ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path} is no segmentation that can be read: {one_line(str(error))}") from None


def segment_names(path: Path) -> dict[int, str]:
    """Number and label of each segment of a SEG, without background.

    Raises:
        DataError: it is none; names the file.
    """
    try:
        return _names(read_dataset(path, keywords=("SegmentSequence",)))
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no segmentation that can be read: {one_line(str(error))}") from None


def segmented_series(path: Path) -> set[str]:
    """UIDs of the series that a SEG was made from; none where it does not say.

    Raises:
        DataError: it cannot be read; names the file.
    """
    with without_warnings():
        dataset = read_dataset(path, keywords=("ReferencedSeriesSequence",))
        return {str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or []}


def check_sources(series: Series) -> None:
    """Refuse a series that no SEG can refer to.

    Raises:
        DataError: it has no FrameOfReferenceUID or its slices no SOPInstanceUID.
    """
    lacking = "FrameOfReferenceUID" if not series.frame_of_reference else ""
    lacking = lacking or ("SOPInstanceUID" if not all(series.sop_uids) else "")
    if lacking:
        raise DataError(f"{series.where}: its files have no {lacking}, so no DICOM segmentation can refer to them")


def _segment_numbers(labels: Mapping[str, int]) -> dict[int, int]:
    """Value of a label to number of its segment, 1, 2, …: the same where values have no gap."""
    values = sorted(value for name, value in labels.items() if name not in NOT_PREDICTED)
    return {value: number for number, value in enumerate(values, start=1)}


def _numbered(
    segmentation: np.ndarray, series: Series, labels: Mapping[str, int], numbers: Mapping[int, int], path: Path
) -> np.ndarray:
    """The label map with numbers of segments for values, in a type that highdicom takes."""
    if segmentation.shape != series.shape:
        raise DataError(
            f"{path}: the segmentation has the shape {segmentation.shape}, {series.where} {series.shape} (Z, Y, X)"
        )
    if segmentation.dtype.kind not in "ui":
        raise DataError(f"{path}: the segmentation holds {segmentation.dtype}, not whole numbers")
    unknown = sorted(set(np.unique(segmentation).tolist()) - set(numbers) - {0})
    if unknown:
        raise DataError(f"{path}: the segmentation holds the value {unknown[0]}, which is none of {dict(labels)}")
    if not numbers:
        raise DataError(f"{path}: there is no label but background")
    array = np.zeros(segmentation.shape, dtype=np.uint8 if max(numbers.values()) < 256 else np.uint16)
    for value, number in numbers.items():
        array[segmentation == value] = number
    return array


def _segment_descriptions(
    labels: Mapping[str, int], numbers: Mapping[int, int], codes: Codes
) -> list[SegmentDescription]:
    """What each segment is, in the order of their numbers."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes as dictionary

    algorithm = AlgorithmIdentificationSequence(
        name="FednnU-Net", version=fednnunet.__version__, family=dictionary.DCM.ArtificialIntelligence
    )
    names = {value: name for name, value in labels.items() if name not in NOT_PREDICTED}
    described = []
    for value, number in numbers.items():
        meaning = codes.of(names[value])
        segment = SegmentDescription(
            segment_number=number,
            segment_label=names[value][:LONGEST_LABEL],
            segmented_property_category=coded(meaning.category),
            segmented_property_type=coded(meaning.type),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=None if meaning.region is None else [coded(meaning.region)],
        )
        _add_laterality(segment, meaning)
        described.append(segment)
    return described


def _add_laterality(segment: Dataset, meaning: Meaning) -> None:
    """Left or right, as a modifier of the type; highdicom has no argument for it."""
    from highdicom.sr import CodedConcept

    if meaning.laterality is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            CodedConcept.from_code(coded(meaning.laterality))
        ]


def _sources(series: Series) -> list[Dataset]:
    """Copies of the files' elements in the order of the volume, made fit for highdicom.

    It copies SpacingBetweenSlices into the SEG, where readers take it for the distance of slices, and compares
    orientations to the last digit.
    """
    sources: list[Dataset] = []
    for path in series.files:
        source = read_dataset(path, force=True)
        for keyword in TYPE_2:
            if keyword not in source:
                setattr(source, keyword, "")
        source.SpacingBetweenSlices = _decimal(series.stack.spacing[2])
        if not source.get("SliceThickness"):
            source.SliceThickness = source.SpacingBetweenSlices
        if sources:
            source.ImageOrientationPatient = sources[0].ImageOrientationPatient
            source.PixelSpacing = sources[0].PixelSpacing
        sources.append(source)
    return sources


def _decimal(number: float) -> Any:
    """A decimal string of at most 16 characters, as DICOM wants it."""
    from pydicom.valuerep import DSfloat

    return DSfloat(number, auto_format=True)


def _label_map(
    dataset: Dataset, series: Series, values: Mapping[int, int] | None, path: Path, overlaps: Overlaps
) -> np.ndarray:
    from highdicom.seg import Segmentation

    if dataset.SOPClassUID not in SEGMENTATIONS:
        raise DataError(f"{path} is no DICOM segmentation (SEG)")
    kind = str(dataset.SegmentationType)
    if kind not in ("BINARY", "LABELMAP"):
        raise DataError(f"{path} is a {kind} segmentation, with parts of voxels; give one that is BINARY or LABELMAP")
    frame_of_reference = str(dataset.get("FrameOfReferenceUID", ""))
    if frame_of_reference and series.frame_of_reference and frame_of_reference != series.frame_of_reference:
        raise DataError(f"{path} lies in another coordinate system (FrameOfReferenceUID) than {series.where}")
    numbers = set(_names(dataset)) | {0}
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


def _names(dataset: Dataset) -> dict[int, str]:
    """Number to label of the segments, without background."""
    return {
        int(item.SegmentNumber): one_line(str(item.get("SegmentLabel", "")).strip())
        for item in dataset.SegmentSequence
        if int(item.SegmentNumber)
    }
