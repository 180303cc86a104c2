"""The gate: whether the slices of a series are one clean volume, by their positions and orientations alone.

Readers are silent on most of what is refused here: they fill, shift or reorder slices (``docs/how-to/dicom.md``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednnunet.dicom.headers import Header
from fednnunet.errors import DataError
from fednnunet.listing import join_all

UNEVEN = 0.1
"""Part of the distance of slices by which a slice may lie off an even grid."""
ROUNDED, MOST_ROUNDED = 0.1, 0.2
"""Scanners round positions to 0.1 mm: a slice may lie off by so many mm, up to this part of the distance of slices."""
ASIDE = 0.1
"""Part of a pixel by which a slice may lie beside the line through the first one."""
SAME_PLACE = 0.1
"""Slices nearer than this part of the usual distance are at one place."""
SMALLEST = 1e-4
"""Distance in mm below which slices are at one place, whatever the others' distance."""
TURNED = 1e-3
"""Largest difference of direction cosines from orthogonal unit vectors."""
SAME_DIRECTION = 1e-4
"""Largest difference of direction cosines within a series."""
SAME_SPACING = 1e-4
"""Largest relative difference of pixel spacings within a series."""


@dataclass(frozen=True)
class SliceStack:
    """Slices that are one volume.

    Attributes:
        headers: headers of the slices along the normal, first to last.
        spacing: distance of voxels (x, y, z: columns, rows, slices) in mm.
        origin: centre of the first voxel (x, y, z) in mm.
        direction: 3 x 3, row by row, its columns the directions of the axes x, y, z, as SimpleITK has them.
    """

    headers: tuple[Header, ...]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


def stack_slices(headers: Sequence[Header]) -> SliceStack:
    """The volume that the slices of one series are.

    Raises:
        DataError: they are not one volume; names the series, the slices and what to do.
    """
    where = name_series(headers)
    for check in (_check_kind, _check_one_source, _check_sizes, _check_copies):
        check(headers, where)
    axes = _axes(headers, where)
    positions = np.array([header.position for header in headers], dtype=np.float64)
    places = (positions - positions[0]) @ axes[2]
    order = np.argsort(places, kind="stable")
    ordered = [headers[index] for index in order]
    rows, columns = _pixel_spacing(headers, where)
    if len(headers) == 1:
        distance = _distance_of_one(headers[0], where)
    else:
        places = places[order]
        distance = _check_places(ordered, places, where)
        _check_line(ordered, positions[order], axes, min(rows, columns), where)
    x, y, z = positions[order[0]]
    return SliceStack(
        tuple(ordered), (columns, rows, distance), (float(x), float(y), float(z)), tuple(map(float, axes.T.flatten()))
    )


def slack(distance: float) -> float:
    """How far in mm something may lie off its slice, of slices ``distance`` mm apart."""
    return max(UNEVEN * distance, min(ROUNDED, MOST_ROUNDED * distance))


def name_series(headers: Sequence[Header]) -> str:
    """How a series is named in a message: description and folder, nothing of the patient."""
    first = headers[0]
    name = f"series {first.description!r}" if first.description else f"series {first.number or 'without description'}"
    return f"{name} in {first.path.parent}"


def _check_kind(headers: Sequence[Header], where: str) -> None:
    """Refuse what is no slice of grey values with a place."""
    for header in headers:
        file = header.path.name
        if header.frames > 1 or (header.position is None and _is_enhanced(header)):
            raise DataError(
                f"{where}: {file} is a multi-frame object ({header.frames} frames); export it as single slices"
            )
        if header.samples != 1 or header.photometric != "MONOCHROME2":
            raise DataError(
                f"{where}: {file} is {header.photometric or 'of unknown colours'} with {header.samples} values per "
                "pixel; only grey images (MONOCHROME2) are read"
            )
    localizers = [header for header in headers if header.is_localizer]
    if localizers and len(localizers) == len(headers):
        raise DataError(f"{where}: its images are localizers (scouts), on which slices are planned; choose another")
    if localizers:
        raise DataError(
            f"{where}: {localizers[0].path.name} is a localizer (scout) under the same SeriesInstanceUID as "
            f"{len(headers) - len(localizers)} slices; remove it"
        )
    for header in headers:
        for value, keyword in (
            (header.position, "ImagePositionPatient"),
            (header.orientation, "ImageOrientationPatient"),
            (header.pixel_spacing, "PixelSpacing"),
        ):
            if value is None:
                raise DataError(f"{where}: {header.path.name} has no {keyword}, so its place is unknown; leave it out")


def _is_enhanced(header: Header) -> bool:
    """Whether geometry stands in functional groups, as in enhanced objects, of one frame, too."""
    return header.sop_class in (
        "1.2.840.10008.5.1.4.1.1.2.1",
        "1.2.840.10008.5.1.4.1.1.2.2",
        "1.2.840.10008.5.1.4.1.1.4.1",
        "1.2.840.10008.5.1.4.1.1.4.4",
        "1.2.840.10008.5.1.4.1.1.130",
        "1.2.840.10008.5.1.4.1.1.128.1",
    )


def _check_one_source(headers: Sequence[Header], where: str) -> None:
    """Refuse slices of two patients, studies, modalities or coordinate systems under one UID."""
    fields: tuple[tuple[str, Callable[[Header], Any]], ...] = (
        ("patients (PatientID)", lambda header: header.patient_id),
        ("studies (StudyInstanceUID)", lambda header: header.study_uid),
        ("modalities", lambda header: header.modality),
        ("coordinate systems (FrameOfReferenceUID)", lambda header: header.frame_of_reference),
    )
    for what, value in fields:
        other = next((header for header in headers if value(header) != value(headers[0])), None)
        if other is not None:
            raise DataError(
                f"{where}: {headers[0].path.name} and {other.path.name} are of two {what} under one "
                "SeriesInstanceUID; separate them"
            )


def _check_sizes(headers: Sequence[Header], where: str) -> None:
    """Refuse slices of several sizes."""
    sizes = Counter((header.rows, header.columns) for header in headers)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        other = next(header for header in headers if (header.rows, header.columns) != usual)
        raise DataError(
            f"{where}: {other.path.name} has {other.rows} x {other.columns} rows and columns, others "
            f"{usual[0]} x {usual[1]}; separate them"
        )


def _check_copies(headers: Sequence[Header], where: str) -> None:
    """Refuse a file that is there twice."""
    seen: dict[str, Header] = {}
    for header in filter(lambda header: header.sop_uid, headers):
        first = seen.setdefault(header.sop_uid, header)
        if first is not header:
            raise DataError(
                f"{where}: {first.path.name} and {header.path} are one object (SOPInstanceUID), copied; remove one"
            )


def _pixel_spacing(headers: Sequence[Header], where: str) -> tuple[float, float]:
    """Distance of rows and of columns in mm."""
    given = np.array([header.pixel_spacing for header in headers], dtype=np.float64)
    if (given <= 0).any():
        bad = headers[int(np.argmax((given <= 0).any(axis=1)))]
        raise DataError(f"{where}: {bad.path.name} has a PixelSpacing that is not positive; leave it out")
    off = np.abs(given - given[0]).max(axis=1) > SAME_SPACING * given[0].min()
    if off.any():
        other = headers[int(np.argmax(off))]
        raise DataError(
            f"{where}: {headers[0].path.name} and {other.path.name} have different PixelSpacing, "
            f"{_mm(given[0])} and {_mm(other.pixel_spacing or ())}; separate them"
        )
    return float(given[0][0]), float(given[0][1])


def _axes(headers: Sequence[Header], where: str) -> np.ndarray:
    """Unit vectors along x (columns), y (rows) and z (slices), one per row; refuses several orientations."""
    given = np.array([header.orientation for header in headers], dtype=np.float64)
    off = np.abs(given - given[0]).max(axis=1) > SAME_DIRECTION
    if off.any():
        other = headers[int(np.argmax(off))]
        raise DataError(
            f"{where}: {headers[0].path.name} and {other.path.name} have different orientations "
            "(ImageOrientationPatient): several stacks or a scout under one SeriesInstanceUID; separate them"
        )
    x, y = given[0][:3], given[0][3:]
    if max(abs(np.linalg.norm(x) - 1), abs(np.linalg.norm(y) - 1), abs(x @ y)) > TURNED:
        raise DataError(
            f"{where}: ImageOrientationPatient of {headers[0].path.name} is not two unit vectors at a right angle; "
            "correct it"
        )
    x = x / np.linalg.norm(x)
    y = y - (y @ x) * x
    y /= np.linalg.norm(y)
    return np.array([x, y, np.cross(x, y)])


def _distance_of_one(header: Header, where: str) -> float:
    """What the file of a single slice says; there are no positions to measure."""
    for given in (header.between_slices, header.thickness):
        if given is not None and given > 0:
            return given
    raise DataError(
        f"{where}: it is a single slice without SpacingBetweenSlices and SliceThickness, so its extent is not known"
    )


def _check_places(headers: Sequence[Header], places: np.ndarray, where: str) -> float:
    """Distance of slices in mm; refuses doubled, missing and unevenly spaced ones.

    Args:
        headers: slices in order.
        places: where they lie along the normal, ascending, in mm.
        where: name of the series.
    """
    gaps = np.diff(places)
    extent = float(places[-1] - places[0])
    usual = float(np.median(gaps[gaps > SAME_PLACE * extent / len(gaps)])) if extent > 0 else 0.0
    same = gaps <= max(SAME_PLACE * usual, SMALLEST)
    if same.any():
        raise DataError(_doubled(headers, same, where))
    distance = extent / len(gaps)
    off = np.abs(places - places[0] - np.arange(len(places)) * distance)
    if off.max() <= slack(distance):
        return distance
    widest = int(np.argmax(gaps))
    between = f"between {headers[widest].path.name} and {headers[widest + 1].path.name}"
    lacking = round(gaps[widest] / usual) - 1
    if lacking >= 1 and abs(gaps[widest] / usual - lacking - 1) <= UNEVEN * (lacking + 1):
        missing = "a slice is" if lacking == 1 else f"{lacking} slices are"
        raise DataError(
            f"{where}: {missing} missing {between}: they lie {gaps[widest]:.4g} mm apart, others {usual:.4g} mm; "
            "fetch the series again"
        )
    raise DataError(
        f"{where}: slices lie unevenly, from {gaps.min():.4g} to {gaps.max():.4g} mm apart (most {between}); resample "
        "it, or leave it out"
    )


def _doubled(headers: Sequence[Header], same: np.ndarray, where: str) -> str:
    """What to say of slices at one place; ``same`` is True where a slice lies on the one before it."""
    starts = np.flatnonzero(~np.concatenate([[False], same]))
    counts = set(np.diff([*starts, len(headers)]).tolist())
    if len(counts) == 1 and len(starts) > 1:
        times = counts.pop()
        return (
            f"{where}: {times} slices lie at each of {len(starts)} places: several time points, echoes or "
            "reconstructions under one SeriesInstanceUID; separate them"
        )
    place = int(np.argmax(same))
    at_place = [header.path.name for header in headers[place : place + 2]]
    return f"{where}: {join_all(at_place)} lie at the same place; remove the one that does not belong to it"


def _check_line(headers: Sequence[Header], positions: np.ndarray, axes: np.ndarray, pixel: float, where: str) -> None:
    """Refuse slices that are shifted within their planes: a tilted gantry, or positions that jump."""
    aside = (positions - positions[0]) @ axes[:2].T
    shift = np.linalg.norm(aside, axis=1)
    if shift.max() <= ASIDE * pixel:
        return
    steps = np.diff(aside, axis=0)
    if np.abs(steps - steps.mean(axis=0)).max() <= ASIDE * pixel:
        normal = np.abs((positions[-1] - positions[0]) @ axes[2])
        angle = np.degrees(np.arctan2(shift[-1], normal))
        raise DataError(
            f"{where}: slices are shifted along a slope of {angle:.3g} degrees (gantry tilt); resample it to a "
            "straight grid, or leave it out"
        )
    place = int(np.argmax(np.linalg.norm(steps, axis=1)))
    raise DataError(
        f"{where}: {headers[place + 1].path.name} lies {np.linalg.norm(steps[place]):.3g} mm beside "
        f"{headers[place].path.name}; slices must lie one above another"
    )


def _mm(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.6g}" for value in values) + " mm"
