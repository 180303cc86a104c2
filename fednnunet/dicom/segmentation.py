"""Segmentations as DICOM SEG objects: written for a series, and read back onto its grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import fednnunet
from fednnunet.dicom.codes import Codes, Meaning, coded, load_codes
from fednnunet.dicom.frames import draw_frames, names_of
from fednnunet.dicom.headers import read_dataset
from fednnunet.dicom.label_map import Overlaps
from fednnunet.dicom.library import reading, require_dicom, without_warnings
from fednnunet.dicom.series import Series
from fednnunet.errors import DataError

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
UNREADABLE = "is no segmentation that can be read"
NOT_PREDICTED = ("background", "ignore")
MANUFACTURER = "FednnU-Net"
SERIES_NUMBER = 1000
"""Beyond those that scanners give."""
LARGEST_VALUE = 2**16
"""Beyond those of label maps."""
LONGEST_LABEL = 64
"""Characters of a segment's label."""


def write_segmentation(
    path: Path,
    segmentation: np.ndarray,
    series: Series,
    labels: Mapping[str, int | Sequence[int]],
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
        labels: label name to value, or to the values of a region, as in nnU-Net's ``dataset.json``; ``background`` and
            ``ignore`` are no segments. Values without gaps are the numbers of the segments.
        codes: what the labels mean; the package's table if not given.
        encoding: ``binary``: a frame per slice and label, for every viewer; ``labelmap``: one per slice, which is
            small, and which few viewers read (DICOM 2024).
        compression: of a label map.
        description: SeriesDescription.

    Raises:
        DataError: another shape than the series, a value that is no label, regions that overlap in a ``labelmap``, a
            source without FrameOfReferenceUID, or something that highdicom refuses.
        ConfigError: the extra ``dicom`` is not installed.
    """
    require_dicom()
    segments = _segments(labels)
    array = _numbered(segmentation, series, segments, encoding, path)
    check_sources(series)
    from highdicom import UID
    from highdicom.seg import Segmentation

    sources = _sources(series)
    descriptions = _segment_descriptions(list(segments), codes or load_codes())
    with reading(f"{series.where}: no segmentation can refer to its files"):
        made = Segmentation(
            source_images=sources,
            pixel_array=array,
            segmentation_type=encoding.upper(),
            segment_descriptions=descriptions,
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
    with without_warnings():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
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
    with reading(f"{path} {UNREADABLE}"):
        return draw_frames(dataset, series, values, path, overlaps)


def segment_names(path: Path) -> dict[int, str]:
    """Number and label of each segment of a SEG, without background.

    Raises:
        DataError: it is none; names the file.
    """
    with reading(f"{path} {UNREADABLE}"):
        return names_of(read_dataset(path, keywords=("SegmentSequence",)))


def segmented_series(path: Path) -> set[str]:
    """UIDs of the series that a SEG was made from; none where it does not say.

    Raises:
        DataError: it cannot be read; names the file.
    """
    with reading(f"{path} {UNREADABLE}"):
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


def _segments(labels: Mapping[str, int | Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Name of each segment to its values, in the order of the segments' numbers, 1, 2, …: that of the values."""
    listed = {
        name: (value,) if isinstance(value, int) else tuple(value)
        for name, value in labels.items()
        if name not in NOT_PREDICTED
    }
    if all(len(values) == 1 for values in listed.values()):
        return dict(sorted(listed.items(), key=lambda entry: entry[1]))
    return listed


def _numbered(
    segmentation: np.ndarray,
    series: Series,
    segments: Mapping[str, tuple[int, ...]],
    encoding: Encoding,
    path: Path,
) -> np.ndarray:
    """What highdicom takes: numbers of segments (Z, Y, X), or where they may overlap masks (Z, Y, X, segment)."""
    if segmentation.shape != series.shape:
        raise DataError(
            f"{path}: the segmentation has the shape {segmentation.shape}, {series.where} {series.shape} (Z, Y, X)"
        )
    if segmentation.dtype.kind not in "ui":
        raise DataError(f"{path}: the segmentation holds {segmentation.dtype}, not whole numbers")
    if not segments:
        raise DataError(f"{path}: there is no label but background")
    known = {value for values in segments.values() for value in values} | {0}
    least, most = int(segmentation.min()), max(int(segmentation.max()), *known)
    is_known = np.isin(np.arange(most + 1), list(known)) if least >= 0 and most < LARGEST_VALUE else None
    if is_known is None or not is_known[segmentation].all():
        unknown = sorted(set(np.unique(segmentation).tolist()) - known)
        raise DataError(
            f"{path}: the segmentation holds the value {unknown[0]}, which is of no label ({dict(segments)})"
        )
    if all(len(values) == 1 for values in segments.values()):
        numbers = np.zeros(most + 1, dtype=np.uint8 if len(segments) <= np.iinfo(np.uint8).max else np.uint16)
        for number, (value,) in enumerate(segments.values(), start=1):
            numbers[value] = number
        return numbers[segmentation]
    if encoding != "binary":
        raise DataError(f"{path}: regions may overlap, which a label map cannot hold; write them as binary")
    return np.stack([np.isin(segmentation, values) for values in segments.values()], axis=-1).astype(np.uint8)


def _segment_descriptions(names: Sequence[str], codes: Codes) -> list[SegmentDescription]:
    """What each segment is, in the order of their numbers, 1, 2, …."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes as dictionary

    algorithm = AlgorithmIdentificationSequence(
        name="FednnU-Net", version=fednnunet.__version__, family=dictionary.DCM.ArtificialIntelligence
    )
    described = []
    for number, name in enumerate(names, start=1):
        meaning = codes.of(name)
        segment = SegmentDescription(
            segment_number=number,
            segment_label=name[:LONGEST_LABEL],
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
            if keyword not in source or not _is_readable(source[keyword]):
                setattr(source, keyword, "")
        source.SpacingBetweenSlices = _decimal(series.stack.spacing[2])
        if not source.get("SliceThickness"):
            source.SliceThickness = source.SpacingBetweenSlices
        if sources:
            source.ImageOrientationPatient = sources[0].ImageOrientationPatient
            source.PixelSpacing = sources[0].PixelSpacing
        sources.append(source)
    return sources


def _is_readable(element: Any) -> bool:
    """Whether a date or time is one; de-identification may leave ``0000``, which highdicom refuses, and quotes."""
    from pydicom.valuerep import DA, TM

    read = {"DA": DA, "TM": TM}.get(element.VR)
    try:
        return read is None or not element.value or bool(read(element.value))
    except (ValueError, TypeError):
        return False


def _decimal(number: float) -> Any:
    """A decimal string of at most 16 characters, as DICOM wants it."""
    from pydicom.valuerep import DSfloat

    return DSfloat(number, auto_format=True)
