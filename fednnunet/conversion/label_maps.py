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
from fednnunet.datasets.case_check import NEAR_INTEGER
from fednnunet.datasets.case_grids import forms_agree
from fednnunet.datasets.geometry import grid_differences
from fednnunet.errors import DataError

ROUNDED = "label values a hair off an integer were rounded"
REORIENTED = "the label map was mirrored or turned onto its image's grid, as its header says"
CHANNEL_REORIENTED = "a channel was mirrored or turned onto the grid of the first, as its header says"
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
        headers: ``strict``: as :func:`bring_onto`; ``image``: voxels stay as they are, and get the image's header.

    Raises:
        DataError: names both files and what differs: size, spacing, origin or direction.
    """
    if headers == "strict":
        return bring_onto(label, image, path, image_path, REORIENTED)
    check_size(label.image, image.image, path, image_path)
    differences = grid_differences(grid_of(label.image), grid_of(image.image))
    if not differences:
        return label
    listed = ", ".join(difference.what for difference in differences)
    is_reoriented = align(_placement(label.image), _placement(image.image)).is_reoriented
    note = REPLACED_REORIENTED if is_reoriented else f"{REPLACED} ({listed} differed)"
    return _changed(label, with_values(image.image, sitk.GetArrayFromImage(label.image)), note)


def bring_onto(loaded: LoadedImage, reference: LoadedImage, path: Path, reference_path: Path, note: str) -> LoadedImage:
    """An image on the grid of another; flipped, and axes exchanged, where that brings one exactly onto the other.

    Args:
        loaded: the image.
        reference: the other.
        path: file of the image.
        reference_path: file of the other.
        note: what to note where the image is changed.

    Raises:
        DataError: the grids still differ, or qform and sform of NIfTI files say different things; names both files and
            what differs: size, spacing, origin or direction.
    """
    placements = _placement(loaded.image), _placement(reference.image)
    alignment = align(*placements)
    if not (alignment.is_reoriented and alignment.is_exact):
        check_grid(loaded.image, reference.image, path, reference_path)
        return loaded
    if not forms_agree((loaded.nifti, reference.nifti), placements, alignment):
        raise DataError(
            f"{path} lies mirrored or turned on {reference_path.name} by one of qform and sform, and not by the other: "
            "correct its header (or, for label maps, go by voxels: --headers image)"
        )
    voxels = sitk.GetArrayFromImage(loaded.image)
    turned = alignment.apply(voxels.reshape(-1, *voxels.shape[-2:]))  # 2D images have one slice
    shape = reference.image.GetSize()[::-1]
    return _changed(loaded, with_values(reference.image, turned.reshape(shape)), note)


def _changed(loaded: LoadedImage, image: sitk.Image, note: str) -> LoadedImage:
    return replace(loaded, image=image, notes=(*loaded.notes, note), is_plain=False)


def labelled_frames(path: Path) -> list[int]:
    """Numbers of the frames that are not empty in a label map, from 0."""
    image, _ = read_file(path)  # a view does not keep it alive
    frames = sitk.GetArrayViewFromImage(image)
    return [number for number, frame in enumerate(frames) if frame.any()]


def _placement(image: sitk.Image) -> Placement:
    return sitk_placement(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _in_full(value: np.floating[Any]) -> str:
    """As few digits as tell the value from all others of its type."""
    return np.format_float_positional(value, trim="-")
