"""Which patients of M&Ms-2 are in M&Ms-1 as well.

FednnU-Net's paper removed them by the hospitals' own patient ids; neither these nor a list of the pairs are published.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.errors import DataError

OVERLAP_COLUMNS = ("mnms1", "mnms2")
SHARED_DIAGNOSES = ("NOR", "HCM", "LV")
"""Diagnoses of M&Ms-2 that M&Ms-1 has too (qcardia-data ee01092, ``pipeline/data_split.py``)."""


def subject_code(text: str) -> str:
    """Name of a subject's folder in M&Ms-2, ``001``, from ``1`` or ``1.0`` in its CSV."""
    return text.removesuffix(".0").zfill(3)


def read_overlap(path: Path) -> dict[str, str]:
    """Id in M&Ms-2 to id in M&Ms-1, from a table with columns ``mnms1`` and ``mnms2``.

    Raises:
        DataError: the table cannot be read, a column is missing, or a line lacks one of the ids.
    """
    pairs = {}
    for row in read_table(path, OVERLAP_COLUMNS).rows:
        first, second = (row.cells[column] for column in OVERLAP_COLUMNS)
        if row.problem or not first or not second:
            raise DataError(f"{path}, line {row.line}: {row.problem or 'it must have both ids'}")
        pairs[subject_code(second)] = first
    return pairs


def find_same_images(cines: Mapping[str, Path], frames: Mapping[str, Iterable[Path]]) -> dict[str, str]:
    """Id in M&Ms-2 to id in M&Ms-1, for patients with a frame of the same voxel values in any order.

    The order is ignored because the two releases may store one image along other axes. Files that cannot be read
    are skipped; they are reported when they are converted.

    Args:
        cines: id in M&Ms-1 to its 4D image (X, Y, Z, T).
        frames: id in M&Ms-2 to its 3D images (X, Y, Z).
    """
    wanted: dict[str, str] = {}
    shapes = set()
    for code, paths in frames.items():
        for values in map(_read_voxels, paths):
            if values is not None and _is_not_constant(values):
                wanted[_digest(values)] = code
                shapes.add(_shape(values))
    found: dict[str, str] = {}
    for patient, path in cines.items():
        cine = _read_voxels(path)
        if cine is None or cine.ndim != 4 or _shape(cine[..., 0]) not in shapes:
            continue  # decided before anything is sorted
        for number in range(cine.shape[-1]):
            same = wanted.get(_digest(cine[..., number]))
            if same is not None:
                found.setdefault(same, patient)
    return found


def _read_voxels(path: Path) -> np.ndarray | None:
    try:  # nibabel, as SimpleITK refuses some files of M&Ms for their direction cosines
        return np.asanyarray(nib.load(path).dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError):
        return None


def _is_not_constant(values: np.ndarray) -> bool:
    return bool(values.size and values.min() != values.max())


def _shape(values: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(values.shape))


def _digest(values: np.ndarray) -> str:
    ordered = np.sort(values, axis=None).astype(np.float32)  # one release may store integers, the other real numbers
    return hashlib.sha256(repr(_shape(values)).encode() + ordered.tobytes()).hexdigest()
