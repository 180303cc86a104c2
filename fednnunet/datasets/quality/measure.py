"""Open the cases of a centre and measure them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk

from fednnunet.config.dataset import ImageHeaders
from fednnunet.datasets.case_check import Rules, check_case
from fednnunet.datasets.checked_file import read_file
from fednnunet.datasets.geometry import orientation_of
from fednnunet.datasets.image_checks import choose_reader, naming
from fednnunet.datasets.quality.summary import SHARES, CaseMeasures, CentreSummary, Percentiles, UnreadableCase
from fednnunet.datasets.raw import RGB_ENDINGS, Case, RawDataset
from fednnunet.errors import DataError
from fednnunet.processes import map_in_processes

OBLIQUE_DEGREES = 30.0
"""Slices at a larger angle than this to the nearest anatomical plane are called oblique."""
EQUAL_SPACING_RATIO = 1.01
"""Spacings with at most this ratio count as equal; the slices then lie along the file's last axis."""
TO_LPS = np.diag([-1.0, -1.0, 1.0])
"""Conversion from nibabel's axes (right, anterior, superior) to DICOM's and ITK's (left, posterior, superior)."""
PLANES = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}


def measure_centre(
    dataset: RawDataset,
    centre: str,
    external: bool = False,
    workers: int = 1,
    progress: Callable[[], object] = lambda: None,
    image_headers: ImageHeaders = "check",
) -> CentreSummary:
    """Open and measure every case once; the result names those that cannot be read.

    Args:
        dataset: dataset of the centre.
        centre: name of the centre.
        external: whether its cases are for testing only.
        workers: number of processes that read; 1 reads in this process.
        progress: called after every case.
        image_headers: as in :class:`~fednnunet.datasets.case_check.Rules`.

    Raises:
        DataError: a process was ended from outside.
    """
    measured: list[CaseMeasures] = []
    unreadable: list[UnreadableCase] = []
    for result in map_in_processes(_measure_with(dataset, centre, image_headers), dataset.cases, workers):
        if isinstance(result, CaseMeasures):
            measured.append(result)
        else:
            unreadable.append(result)
        progress()
    labels = {name: _values(value) for name, value in dataset.labels.items() if name not in ("background", "ignore")}
    return CentreSummary(
        name=centre,
        dataset=dataset.name,
        external=external,
        channels=tuple(dataset.channel_names.values()),
        labels=labels,
        ignored=dataset.labels.get("ignore"),
        cases=tuple(measured),
        unreadable=tuple(unreadable),
    )


def image_digests(dataset: RawDataset, centre: str, workers: int = 1) -> dict[str, str]:
    """Case name to the digest of its decoded images, by which duplicates are found.

    Raises:
        DataError: an image cannot be read.
    """
    reader = choose_reader(dataset, dataset.cases[0], centre)
    digests = map_in_processes(partial(_digest_case, reader=reader, centre=centre), dataset.cases, workers)
    return {case.name: digest for case, digest in zip(dataset.cases, digests, strict=True)}


def _digest_case(case: Case, reader: type, centre: str) -> str:
    read = reader().read_images
    with naming(centre):
        return content_digest(read_file(read, [str(path)], path)[0] for path in case.images)


def content_digest(images: Iterable[np.ndarray]) -> str:
    """SHA-256 of the decoded voxels (C, Z, Y, X) of a case's files, with shape and type; headers do not count."""
    digest = hashlib.sha256()
    for image in images:
        little = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str}{little.shape}".encode())
        digest.update(little.data)
    return digest.hexdigest()


# one case ----------------------------------------------------------------------------------------------


def _measure_with(
    dataset: RawDataset, centre: str, image_headers: ImageHeaders
) -> Callable[[Case], CaseMeasures | UnreadableCase]:
    reader = None
    for case in dataset.cases:  # the first may be the one that is broken
        with contextlib.suppress(DataError, OSError):
            reader = choose_reader(dataset, case, centre)
            break
    rules = None if reader is None else Rules.of(dataset, reader, image_headers)
    return partial(measure_case, rules=rules, ending=dataset.file_ending)


def measure_case(case: Case, rules: Rules | None, ending: str) -> CaseMeasures | UnreadableCase:
    """Measure one case, or say why that is not possible.

    Args:
        case: the case to open.
        rules: what it must be like; None where nnU-Net has no reader for these files.
        ending: ending of the files.
    """
    for path in (*case.images, case.label):
        if not path.is_file():
            return UnreadableCase(case.name, f"{path} is missing")
    if rules is None:
        return UnreadableCase(case.name, f"none of nnU-Net's readers for {ending} can read {case.images[0]}")
    try:
        return _measure(case, rules, ending in RGB_ENDINGS)
    except DataError as error:
        return UnreadableCase(case.name, str(error))
    except MemoryError:
        return UnreadableCase(case.name, f"{case.images[0]} does not fit into memory")


def _measure(case: Case, rules: Rules, without_spacing: bool) -> CaseMeasures:
    checked = check_case(case, rules)
    images, properties = [image.voxels for image in checked.images], checked.images[0].properties
    direction = direction_of(properties)
    axes = 3 if direction is None or len(direction) == 3 else 2
    spacing = None if without_spacing else tuple(float(step) for step in properties["spacing"][-axes:])
    orientation, plane = "", ""
    if direction is not None and axes == 3 and spacing is not None:
        orientation, plane = anatomical_axes(direction), slice_plane(direction, spacing)
    return CaseMeasures(
        name=case.name,
        shape=tuple(int(size) for size in images[0].shape[1:]),
        spacing=spacing,
        orientation=orientation,
        plane=plane,
        intensities=tuple(_percentiles(channel) for image in images for channel in image),
        label_voxels=checked.label_voxels,
        digest=content_digest(images),
        problems=tuple(checked.problems),
        notes={kind.value: voxels for kind, voxels in checked.notes.items()},
    )


def _percentiles(channel: np.ndarray) -> Percentiles:
    signal = channel[channel != 0]
    return Percentiles(*(np.percentile(signal, SHARES).tolist() if signal.size else (0.0, 0.0, 0.0)))


def _values(value: int | list[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


# orientation of an image -------------------------------------------------------------------------------


def direction_of(properties: dict[str, Any]) -> np.ndarray | None:
    """Directions of a file's axes X, Y, Z (columns) in left, posterior, superior; None where its format has none.

    Args:
        properties: properties from nnU-Net's readers.
    """
    orientation = orientation_of(properties)
    if "direction" in orientation:
        axes = round(len(orientation["direction"]) ** 0.5)
        return np.reshape(orientation["direction"], (axes, axes))
    if "affine matrix" in orientation:
        columns = TO_LPS @ np.asarray(orientation["affine matrix"])[:3, :3]
        return columns / np.linalg.norm(columns, axis=0)
    return None


def anatomical_axes(direction: np.ndarray) -> str:
    """Directions of a file's axes X, Y, Z as letters, such as ``LPS``; for oblique axes the nearest.

    Args:
        direction: directions of the axes (columns), in left, posterior, superior.
    """
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction.ravel().tolist()))


def slice_plane(direction: np.ndarray, spacing: tuple[float, ...]) -> str:
    """Plane of the slices, which are perpendicular to the axis of the largest spacing.

    Args:
        direction: directions of the axes X, Y, Z (columns).
        spacing: mm (Z, Y, X).
    """
    steps = np.array(spacing[::-1])
    across = 2 if steps.max() <= EQUAL_SPACING_RATIO * steps[2] else int(steps.argmax())
    if np.abs(direction[:, across]).max() < np.cos(np.radians(OBLIQUE_DEGREES)):
        return "oblique"
    return PLANES[anatomical_axes(direction)[across]]
