"""A file of a case as training is to see it: read to its end, by nnU-Net's reader, with lengths in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fednnunet.datasets.alignment import Placement, placement_of
from fednnunet.datasets.file_integrity import FileContent, NiftiHeader, inspect_file
from fednnunet.datasets.geometry import format_size
from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import NoteKind

SAME_SPACING = 0.01
"""Two spacings of a header that differ by a smaller part than this are one, but for rounding."""
MIN_DETERMINANT = 1e-3
"""Smallest determinant of the directions of a file's axes, which is 1 at right angles and 0 in one plane."""


@dataclass
class CheckedFile:
    """A file of a case, as training is to see it.

    Attributes:
        path: the file.
        voxels: (C, Z, Y, X).
        properties: those of nnU-Net's reader; lengths in mm.
        placement: where its voxels lie; None where the format has no such header, or the header does not say.
        nifti: header of a NIfTI file.
        not_finite: number of voxels that are NaN or infinite in the file, which the reader has made 0.
        is_constant: whether a channel has the same value in all voxels.
        changed: what nnU-Net's reader does not see like this: ``unit`` (only the header's lengths) or ``voxels``.
    """

    path: Path
    voxels: np.ndarray
    properties: dict[str, Any]
    placement: Placement | None
    nifti: NiftiHeader | None
    not_finite: int = 0
    is_constant: bool = False
    changed: set[Literal["unit", "voxels"]] = field(default_factory=set)


def read_file(read: Any, argument: Any, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """What a method of nnU-Net's readers returns for ``argument``: voxels (C, Z, Y, X) and properties.

    Raises:
        DataError: it cannot be read; names ``path``.
    """
    try:
        return read(argument)
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise DataError(f"{path} cannot be read: {cause[-1] if cause else type(error).__name__}") from error


def check_dimensions(path: Path, content: FileContent) -> None:
    """Refuse a NIfTI file of more than three dimensions.

    Raises:
        DataError: names the file and its size.
    """
    if content.nifti is not None and len(content.nifti.shape) > 3:
        raise _too_many_dimensions(path, content.nifti.shape)


def _too_many_dimensions(path: Path, shape: Sequence[int]) -> DataError:
    size = format_size(shape)
    return DataError(
        f"{path} has {len(shape)} dimensions, {size} (X, Y, Z and more); nnU-Net takes a 3D file per channel and per "
        "label map: write each volume to a file of its own"
    )


def read_to_end(path: Path, read: Any, argument: Any) -> CheckedFile:
    """Read a file to its end, and as nnU-Net's reader reads it.

    Args:
        path: the file.
        read: method of one of nnU-Net's readers.
        argument: its argument.

    Raises:
        DataError: it was cut off, cannot be read, has no voxels or more than three dimensions, or holds NaN or infinity
            that the reader keeps; names the file.
    """
    content = inspect_file(path)
    check_dimensions(path, content)
    voxels, properties = read_file(read, argument, path)
    _check_axes(path, voxels, properties)
    lowest, highest = ([float(part(channel)) for channel in voxels] for part in (np.min, np.max))
    if not np.isfinite([*lowest, *highest]).all():  # both are NaN where one voxel is
        raise DataError(f"{path} holds NaN or infinity")
    is_constant = any(low == high for low, high in zip(lowest, highest, strict=True))
    file = CheckedFile(path, voxels, properties, None, content.nifti, content.not_finite, is_constant)
    if content.nifti is not None and content.nifti.millimetres != 1 and "nibabel_stuff" in properties:
        file.properties = _in_millimetres(properties, content.nifti.millimetres)  # SimpleITK converts, nibabel does not
        file.changed.add("unit")
    if content.nifti is None or content.nifti.qform is not None or content.nifti.sform is not None:
        file.placement = placement_of(voxels, file.properties)
    if file.placement is not None and not has_three_directions(file.placement.affine[:3, :3]):
        raise DataError(f"the axes of {path} are not three directions by its header; correct it")
    return file


def has_three_directions(axes: np.ndarray) -> bool:
    """Whether the columns of ``axes`` (3, 3) span all of space."""
    lengths = np.linalg.norm(axes, axis=0)
    return bool(
        np.isfinite(lengths).all() and (lengths > 0).all() and abs(np.linalg.det(axes / lengths)) > MIN_DETERMINANT
    )


def _check_axes(path: Path, voxels: np.ndarray, properties: dict[str, Any]) -> None:
    """Refuse no voxels, and what nnU-Net's SimpleITKIO takes for channels or slices: a fourth dimension, colours."""
    if not voxels.size:
        raise DataError(f"{path} holds no voxels")
    if "sitk_stuff" not in properties:
        return
    axes = len(properties["sitk_stuff"]["spacing"])
    if axes > 3:
        raise _too_many_dimensions(path, voxels.shape[::-1])
    if len(voxels) != 1 or (axes == 2 and voxels.shape[1] != 1):
        raise DataError(f"{path} has {voxels.shape[-1]} values per voxel; it must have one: split it into channels")


def _in_millimetres(properties: dict[str, Any], factor: float) -> dict[str, Any]:
    scale = np.diag([factor, factor, factor, 1.0])
    affines = {name: scale @ np.asarray(affine, float) for name, affine in properties["nibabel_stuff"].items()}
    return {**properties, "spacing": [step * factor for step in properties["spacing"]], "nibabel_stuff": affines}


def header_notes(header: NiftiHeader | None) -> set[NoteKind]:
    """What people should know of a NIfTI header."""
    if header is None:
        return set()
    notes = {NoteKind.UNIT} if header.millimetres != 1 else set()
    if header.sform is not None:
        by_sform = np.linalg.norm(header.sform[:3, : min(len(header.shape), 3)], axis=0)
        if not np.allclose(by_sform, header.spacing[: len(by_sform)], rtol=SAME_SPACING, atol=0):
            notes.add(NoteKind.TWO_SPACINGS)
    return notes
