"""Headers of DICOM files: what the gate looks at, and which objects are no images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednnunet.dicom.library import reading, require_dicom
from fednnunet.errors import DataError, one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes Segmentation Storage and Label Map Segmentation Storage."""
STRUCTURES = ("1.2.840.10008.5.1.4.1.1.481.3",)
"""SOP class RT Structure Set Storage."""
NOT_SLICES = ("1.2.840.10008.5.1.4.1.1.481.", "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.30")
"""Beginnings of SOP classes that may have rows and columns and are no slices: RT dose, SEG, parametric maps."""
CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
"""Beginning of the SOP classes of secondary captures (screenshots, dose reports) and photographs."""
IMAGES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in ("1", "1.1", "2", "2.1", "2.2", "4", "4.1", "4.4", "6.1", "12.1", "20", "128", "128.1", "130")
)
"""SOP classes of images: CR, DX, CT, MR, US, XA, NM and PET; one without a size was cut off."""
ENDINGS = (".dcm", ".ima")
"""By which a file says that it is DICOM, whatever is in it."""
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of DICOMDIR."""
KEYWORDS = (
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesDescription",
    "PatientName",
    "PatientID",
    "PatientIdentityRemoved",
    "SliceThickness",
    "SpacingBetweenSlices",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
)
PREFIX = 128
"""Bytes before the letters DICM."""
GROUP_8 = b"\x08\x00"
"""How a file begins that has neither prefix nor DICM: group 0008, little endian."""


@dataclass(frozen=True)
class Header:
    """What the gate looks at in one file.

    Attributes:
        path: the file.
        sop_class: kind of object.
        sop_uid: UID of the object.
        series_uid: UID of its series.
        study_uid: UID of its study.
        frame_of_reference: UID of the coordinate system of its positions; empty if not given.
        patient_id: the patient; never shown.
        patient_name: the patient; never shown.
        is_deidentified: whether the file says that identity was removed.
        modality: CT, MR …
        description: description of the series.
        number: number of the series; empty if not given.
        image_type: values such as ORIGINAL, PRIMARY, LOCALIZER.
        samples: values per pixel.
        photometric: such as MONOCHROME2.
        frames: number of frames; 1 for a slice.
        rows: number of rows (Y); None without pixels.
        columns: number of columns (X).
        position: centre of the first pixel (x, y, z) in mm; None if not given.
        orientation: directions in which columns, then rows are counted; None if not given.
        pixel_spacing: distance of rows, then of columns, in mm; None if not given.
        thickness: thickness of the slice in mm; None if not given.
        between_slices: the file's own word on the distance of slices in mm; only for a single slice.
    """

    path: Path
    sop_class: str
    sop_uid: str
    series_uid: str
    study_uid: str
    frame_of_reference: str
    patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    is_deidentified: bool
    modality: str
    description: str
    number: str
    image_type: tuple[str, ...]
    samples: int
    photometric: str
    frames: int
    rows: int | None
    columns: int | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    thickness: float | None
    between_slices: float | None

    @property
    def is_segmentation(self) -> bool:
        return self.sop_class in SEGMENTATIONS

    @property
    def is_structure_set(self) -> bool:
        return self.sop_class in STRUCTURES

    @property
    def is_image(self) -> bool:
        """Whether it may be a slice: it has pixels, and is no dose, segmentation or map."""
        return bool(self.rows and self.columns) and not self.sop_class.startswith(NOT_SLICES)

    @property
    def is_localizer(self) -> bool:
        """A scout, on which slices were planned."""
        return "LOCALIZER" in self.image_type

    @property
    def is_capture(self) -> bool:
        """A screenshot, report or photograph without a place in the patient."""
        return self.sop_class.startswith(CAPTURES) and self.position is None


def read_headers(folder: Path) -> list[Header]:
    """Headers of all DICOM files in a folder and its folders, by path; other files and DICOMDIR are ignored.

    Raises:
        ConfigError: the extra ``dicom`` is not installed.
        DataError: there is no such folder, or a DICOM file cannot be read; names it.
    """
    require_dicom()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one that holds DICOM files")
    return list(_headers(folder))


def _headers(folder: Path) -> Iterator[Header]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        kind = _kind(path)
        if kind is not None:
            header = _read_header(path, force=kind == "bare")
            if header is not None:
                yield header


def _kind(path: Path) -> str | None:
    """``dicom`` by its letters DICM, ``bare`` for a file that begins with its data elements, None for others."""
    if path.name.startswith("._"):  # of macOS
        return None
    with path.open("rb") as file:
        start = file.read(PREFIX + 4)
    if len(start) < PREFIX + 4 and path.name.lower().endswith(ENDINGS):
        raise _cut_off(path)
    if start[PREFIX:] == b"DICM":
        return "dicom"
    return "bare" if start.startswith(GROUP_8) else None


def _read_header(path: Path, *, force: bool) -> Header | None:
    """The header; None for DICOMDIR, and for what only looked like DICOM."""
    dataset = read_dataset(path, keywords=KEYWORDS, force=force)
    with reading(f"{path}: its header cannot be read"):
        stored = str(getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", ""))
        sop_class = _text(dataset, "SOPClassUID")
        if DIRECTORY in (sop_class, stored) or (force and not sop_class):
            return None
        if not sop_class or (stored != sop_class and stored.startswith(sop_class)):
            raise _cut_off(path)
        if sop_class in IMAGES and not (_whole(dataset, "Rows") and _whole(dataset, "Columns")):
            raise _cut_off(path)  # pydicom reads what is there; without it, a volume would only be shorter
        return Header(
            path=path,
            sop_class=sop_class,
            sop_uid=_text(dataset, "SOPInstanceUID"),
            series_uid=_text(dataset, "SeriesInstanceUID"),
            study_uid=_text(dataset, "StudyInstanceUID"),
            frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
            patient_id=_text(dataset, "PatientID"),
            patient_name=_text(dataset, "PatientName"),
            is_deidentified=_text(dataset, "PatientIdentityRemoved") == "YES",
            modality=_text(dataset, "Modality"),
            description=_text(dataset, "SeriesDescription"),
            number=_text(dataset, "SeriesNumber"),
            image_type=tuple(map(str, _values(dataset, "ImageType"))),
            samples=int(_number(dataset, "SamplesPerPixel") or 1),
            photometric=_text(dataset, "PhotometricInterpretation"),
            frames=int(_number(dataset, "NumberOfFrames") or 1),
            rows=_whole(dataset, "Rows"),
            columns=_whole(dataset, "Columns"),
            position=_numbers(dataset, "ImagePositionPatient", 3),
            orientation=_numbers(dataset, "ImageOrientationPatient", 6),
            pixel_spacing=_numbers(dataset, "PixelSpacing", 2),
            thickness=_number(dataset, "SliceThickness"),
            between_slices=_number(dataset, "SpacingBetweenSlices"),
        )


def _cut_off(path: Path) -> DataError:
    return DataError(f"{path} is cut off: its header ends before it says what the file holds; copy it again")


def read_dataset(path: Path, *, keywords: tuple[str, ...] = (), pixels: bool = False, force: bool = False) -> Dataset:
    """A file's data elements, or those of ``keywords``; without pixels unless asked for.

    Raises:
        DataError: it cannot be read; names it.
    """
    import pydicom

    with reading(f"{path} is damaged, or no DICOM file"):
        return pydicom.dcmread(path, stop_before_pixels=not pixels, force=force, specific_tags=list(keywords) or None)


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    """The values of an element; none where it lacks or is empty."""
    from pydicom.multival import MultiValue

    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _text(dataset: Dataset, keyword: str) -> str:
    return one_line("\\".join(map(str, _values(dataset, keyword))).strip())


def _number(dataset: Dataset, keyword: str) -> float | None:
    values = _values(dataset, keyword)
    return float(values[0]) if values and math.isfinite(float(values[0])) else None


def _whole(dataset: Dataset, keyword: str) -> int | None:
    number = _number(dataset, keyword)
    return None if number is None else int(number)


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, or None for an element that lacks or is empty."""
    numbers = tuple(float(value) for value in _values(dataset, keyword))
    if not numbers:
        return None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{keyword} holds {numbers}; it must be {count} numbers")
    return numbers
