"""Open the images and label maps of a dataset with nnU-Net's readers, and check that they can be trained on."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet.datasets.description import label_values, unknown_label_values
from fednnunet.datasets.geometry import STOPS_NNUNET, format_size, grid_differences, grid_of
from fednnunet.datasets.raw import Case, RawDataset
from fednnunet.errors import DataError

log = logging.getLogger(__name__)


def check_images(dataset: RawDataset, centre: str, progress: Callable[[int], None] | None = None) -> None:
    """Open every file once, with the reader that nnU-Net will use.

    Image and label map of different origin or direction are a warning, as in nnU-Net, which ignores both.

    Args:
        dataset: the images to check.
        centre: named in errors and warnings.
        progress: called after every case with the number of cases done.

    Raises:
        DataError: unreadable file, wrong number of channels, image and label map of different shape or spacing, NaN or
            infinity in an image, or label values that ``dataset.json`` does not name.
    """
    reader = choose_reader(dataset, dataset.cases[0], centre)()
    ignored: dict[str, list[str]] = {}
    for number, case in enumerate(dataset.cases, start=1):
        for what in _check_case(case, reader, dataset, centre):
            ignored.setdefault(what, []).append(case.name)
        if progress is not None:
            progress(number)
    for what, names in ignored.items():
        log.warning(
            "centre %s: image and label differ in %s in %d cases, the first %s; nnU-Net ignores it: check that they "
            "overlie each other",
            centre,
            what,
            len(names),
            names[0],
        )


def choose_reader(dataset: RawDataset, example: Case, centre: str) -> type:
    """The class that nnU-Net reads ``dataset`` with, chosen by the first image of ``example``.

    Raises:
        DataError: no reader can read it.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    first = example.images[0]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints the traceback of every reader that fails
            return determine_reader_writer_from_dataset_json(dataset.dataset_json, str(first), verbose=False)
    except RuntimeError:
        raise DataError(
            f"centre {centre}: {first} cannot be read by any of nnU-Net's readers for {dataset.file_ending}"
        ) from None


def read_image(reader: Any, path: Path, centre: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels (C, Z, Y, X) and properties of an image.

    Args:
        reader: instance of one of nnU-Net's readers.
        path: file of the image.
        centre: named in errors.

    Raises:
        DataError: it cannot be read, or holds NaN or infinity.
    """
    image, properties = read_file(reader.read_images, [str(path)], path, centre)
    check_finite(image, path, centre)
    return image, properties


def read_file(read: Any, argument: Any, path: Path, centre: str) -> tuple[np.ndarray, dict[str, Any]]:
    """What a method of nnU-Net's readers returns for ``argument``: voxels (C, Z, Y, X) and properties.

    Raises:
        DataError: it cannot be read; names centre and ``path``.
    """
    try:
        return read(argument)
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise DataError(
            f"centre {centre}: {path} cannot be read: {cause[-1] if cause else type(error).__name__}"
        ) from error


def check_finite(voxels: np.ndarray, path: Path, centre: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: names centre and file.
    """
    if not np.isfinite(voxels).all():
        raise DataError(f"centre {centre}: {path} holds NaN or infinity")


def check_channels(case: Case, found: int, expected: int, centre: str) -> None:
    """Refuse another number of channels than ``channel_names`` in ``dataset.json`` has.

    Raises:
        DataError: names centre, file and both numbers.
    """
    if found != expected:
        raise DataError(
            f"centre {centre}: {case.images[0]} has {found} channels, channel_names in dataset.json {expected}"
        )


def _check_case(case: Case, reader: Any, dataset: RawDataset, centre: str) -> list[str]:
    """Properties of the grid in which an image and the label map differ without its being an error."""
    label, properties = read_file(reader.read_seg, str(case.label), case.label, centre)
    if len(label) != 1:
        raise DataError(f"centre {centre}: {case.label} has {len(label)} channels; a label map has one")
    unknown = unknown_label_values(np.unique(label).tolist(), label_values(dataset.labels))
    if unknown:
        raise DataError(
            f"centre {centre}: {case.label} holds value {unknown[0]:g}, which labels in dataset.json does not name"
        )
    reference, channels, differing = grid_of(label, properties), 0, set()
    for path in case.images:
        image, properties = read_image(reader, path, centre)
        channels += len(image)
        for difference in grid_differences(grid_of(image, properties), reference):
            if difference.what in STOPS_NNUNET:
                unit = STOPS_NNUNET[difference.what]
                raise DataError(
                    f"centre {centre}: {path} has {difference.what} {format_size(difference.value)}{unit}, its label "
                    f"{case.label.name} {format_size(difference.reference)}{unit} (Z, Y, X)"
                )
            differing.add(difference.what)
    check_channels(case, channels, len(dataset.channel_names), centre)
    return sorted(differing)
