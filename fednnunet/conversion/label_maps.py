"""Read a case's label map, give its values their numbers, and bring it onto the image's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from fednnunet.conversion.images import (
    LoadedImage,
    as_grey,
    check_grid,
    check_size,
    grid_of,
    read_file,
    read_image,
    with_values,
)
from fednnunet.conversion.options import Headers
from fednnunet.conversion.scan_result import SourceImage
from fednnunet.datasets.alignment import Placement, align, sitk_placement
from fednnunet.datasets.geometry import grid_differences
from fednnunet.errors import DataError

NEAR_INTEGER = 1e-3
ROUNDED = "label values a hair off an integer were rounded"
REORIENTED = "the label map was mirrored or turned onto its image's grid, as its header says"
REPLACED = "the label map got its image's header, voxel by voxel"
REPLACED_REORIENTED = (
    "the label map's header says that it lies mirrored or turned on its image, and was replaced by the image's: look "
    "at both together"
)


def read_label(source: SourceImage, values: Mapping[int, int]) -> LoadedImage:
    """The label map in uint8.

    Args:
        source: the label map.
        values: value in the source to the value to write; 0 need not be named.

    Raises:
        DataError: names the file: as :func:`read_image`, NaN or infinity, or a value that is no integer or that
            ``values`` lacks.
    """
    loaded = read_image(source)
    if loaded.not_finite:
        raise DataError(
            f"{source.path} holds NaN or infinity in {loaded.not_finite:,} voxels; a label map holds integers"
        )
    image = as_grey(loaded.image)
    given = sitk.GetArrayViewFromImage(image)
    found = np.unique(given)
    rounded = np.rint(given) if given.dtype.kind == "f" else given
    written = np.zeros(given.shape, dtype=np.uint8)
    for value in found:
        if abs(value - np.rint(value)) > NEAR_INTEGER:
            raise DataError(
                f"{source.path} holds the value {_in_full(value)}, which is not an integer; a label map holds integers"
            )
        new = {0: 0, **values}.get(int(np.rint(value)))
        if new is None:
            known = ", ".join(map(str, sorted({0, *values})))
            raise DataError(f"{source.path} holds the value {value:g}; this dataset's label maps hold {known}")
        if new:
            written[rounded == np.rint(value)] = new
    off = [value for value in found if value != np.rint(value)]
    note = (f"{ROUNDED} ({_in_full(off[0])} in {source.path})",) if off else ()
    same = image is loaded.image and all(values.get(int(value), 0) == value for value in found)
    return replace(
        loaded,
        image=with_values(image, written),
        notes=(*loaded.notes, *note),
        is_plain=loaded.is_plain and same,
    )


def place_label(label: LoadedImage, image: LoadedImage, path: Path, image_path: Path, headers: Headers) -> LoadedImage:
    """The label map on the grid of its image.

    Args:
        label: the label map.
        image: the first channel.
        path: file of the label map.
        image_path: file of the first channel.
        headers: ``strict``: the label map is brought onto the image's grid where the headers say how, by flips and
            exchanges of axes; ``image``: its voxels stay as they are.

    Raises:
        DataError: names both files and what differs: size, spacing, origin or direction.
    """
    alignment = align(_placement(label.image), _placement(image.image))
    if headers == "image":
        check_size(label.image, image.image, path, image_path)
        differences = grid_differences(grid_of(label.image), grid_of(image.image))
        if not differences:
            return label
        listed = ", ".join(difference.what for difference in differences)
        note = REPLACED_REORIENTED if alignment.is_reoriented else f"{REPLACED} ({listed} differed)"
        voxels = sitk.GetArrayFromImage(label.image)
    else:
        if not (alignment.is_reoriented and alignment.is_exact):
            check_grid(label.image, image.image, path, image_path)
            return label
        note = REORIENTED
        given = sitk.GetArrayFromImage(label.image)
        voxels = alignment.apply(given.reshape(-1, *given.shape[-2:])).reshape(_shape(image.image))
    return replace(label, image=with_values(image.image, voxels), notes=(*label.notes, note), is_plain=False)


def labelled_frames(path: Path) -> list[int]:
    """Numbers of the frames that are not empty in a label map, from 0."""
    image = read_file(path)  # a view does not keep it alive
    frames = sitk.GetArrayViewFromImage(image)
    return [number for number, frame in enumerate(frames) if frame.any()]


def _placement(image: sitk.Image) -> Placement:
    return sitk_placement(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _shape(image: sitk.Image) -> tuple[int, ...]:
    return image.GetSize()[::-1]


def _in_full(value: np.floating[Any]) -> str:
    """As few digits as tell the value from all others of its type."""
    return np.format_float_positional(value, trim="-")
