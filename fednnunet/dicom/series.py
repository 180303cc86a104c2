"""Series of slices as volumes: found in folders, passed by a gate, read with each slice's own rescaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fednnunet.dicom.gate import SliceStack, name_series, stack_slices
from fednnunet.dicom.headers import Header, read_headers
from fednnunet.dicom.pixels import read_slice
from fednnunet.errors import DataError

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True)
class Series:
    """Slices of one SeriesInstanceUID that are one clean volume.

    Attributes:
        stack: headers in order along the normal, and the grid.
        where: how the series is named in messages: description and folder.
    """

    stack: SliceStack
    where: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the slices, in the order of the volume's first axis."""
        return tuple(header.path for header in self.stack.headers)

    @property
    def sop_uids(self) -> tuple[str, ...]:
        """UIDs of the slices, in the order of the volume's first axis."""
        return tuple(header.sop_uid for header in self.stack.headers)

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self._first.series_uid

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID."""
        return self._first.study_uid

    @property
    def frame_of_reference(self) -> str:
        """FrameOfReferenceUID; empty if not given."""
        return self._first.frame_of_reference

    @property
    def description(self) -> str:
        """SeriesDescription; empty if not given."""
        return self._first.description

    @property
    def number(self) -> str:
        """SeriesNumber; empty if not given."""
        return self._first.number

    @property
    def modality(self) -> str:
        """Modality, such as CT."""
        return self._first.modality

    @property
    def patient_id(self) -> str:
        """The patient; not to be shown or written."""
        return self._first.patient_id

    @property
    def patient_name(self) -> str:
        """The patient; not to be shown or written."""
        return self._first.patient_name

    @property
    def is_deidentified(self) -> bool:
        """Whether the files say that identity was removed."""
        return self._first.is_deidentified

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (Z, Y, X)."""
        return len(self.stack.headers), self._first.rows or 0, self._first.columns or 0

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of voxels (x, y, z) in mm."""
        return self.stack.spacing

    @property
    def positions(self) -> np.ndarray:
        """Centres of the slices' first pixels (Z, 3) in mm, as their files say."""
        return np.array([header.position for header in self.stack.headers], dtype=np.float64)

    @property
    def _first(self) -> Header:
        return self.stack.headers[0]


@dataclass(frozen=True)
class Volume:
    """Voxels and their place, as SimpleITK has them.

    Attributes:
        array: rescaled values (Z, Y, X), float32.
        spacing: distance of voxels (x, y, z) in mm.
        origin: centre of the first voxel (x, y, z) in mm.
        direction: 3 x 3, row by row.
    """

    array: np.ndarray = field(repr=False)
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    def as_image(self) -> sitk.Image:
        """The same as an image of SimpleITK."""
        return place_array(self.array, self.spacing, self.origin, self.direction)


@dataclass(frozen=True)
class Refusal:
    """A series that is no clean volume.

    Attributes:
        uid: SeriesInstanceUID.
        description: its description; empty if not given.
        folder: folder of its first file.
        reason: what is wrong, where, and what to do.
        is_set_aside: whether it was never meant as a volume: localizers alone, or screenshots.
    """

    uid: str
    description: str
    folder: Path
    reason: str
    is_set_aside: bool


@dataclass(frozen=True)
class FolderContent:
    """What a folder holds.

    Attributes:
        series: clean volumes, by number and description.
        refusals: series that are none.
        segmentations: SEG objects.
        structure_sets: RTSTRUCT objects.
    """

    series: tuple[Series, ...]
    refusals: tuple[Refusal, ...]
    segmentations: tuple[Header, ...]
    structure_sets: tuple[Header, ...]


def look_into(folder: Path) -> FolderContent:
    """Everything of interest in a folder and its folders; nothing is refused here.

    Raises:
        ConfigError: the extra ``dicom`` is not installed.
        DataError: there is no such folder, or a DICOM file cannot be read.
    """
    headers = read_headers(folder)
    groups: dict[str, list[Header]] = {}
    for header in headers:
        if header.is_image:
            groups.setdefault(header.series_uid, []).append(header)
    series, refusals = [], []
    for group in groups.values():
        try:
            if not group[0].series_uid:
                raise DataError(f"{group[0].path} has no SeriesInstanceUID; leave it out")
            series.append(Series(stack_slices(group), name_series(group)))
        except DataError as error:
            set_aside = all(header.is_localizer or header.is_capture for header in group)
            first = group[0]
            refusals.append(Refusal(first.series_uid, first.description, first.path.parent, str(error), set_aside))
    series.sort(key=lambda one: (one.patient_id, one.study_uid, _as_number(one.number), one.description, one.uid))
    return FolderContent(
        tuple(series),
        tuple(refusals),
        tuple(header for header in headers if header.is_segmentation),
        tuple(header for header in headers if header.is_structure_set),
    )


def check_one_patient(series: Sequence[Series], folder: Path) -> None:
    """Refuse series of several patients where one is expected.

    Raises:
        DataError: names the two series, and no patient.
    """
    other = next((one for one in series if one.patient_id != series[0].patient_id), None)
    if other is not None:
        raise DataError(
            f"{folder} holds series of two patients (PatientID): {series[0].where} and {other.where}; give each a "
            "folder of its own"
        )


def read_volume(series: Series) -> Volume:
    """Voxels of a series; each slice is rescaled by its own slope and intercept.

    Raises:
        DataError: a file cannot be read or decoded, or is not as it was; names it.
    """
    array = np.empty(series.shape, dtype=np.float32)
    for place, path in zip(array, series.files, strict=True):
        place[...] = read_slice(path, (place.shape[0], place.shape[1]))
    return Volume(array, series.stack.spacing, series.stack.origin, series.stack.direction)


def place_array(
    array: np.ndarray, spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]
) -> sitk.Image:
    """An image of SimpleITK of an array (Z, Y, X) and its place."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def _as_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else 0
