"""Values of one slice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fednnunet.dicom.headers import read_dataset
from fednnunet.dicom.library import reading
from fednnunet.errors import DataError, one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_slice(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Rescaled values (Y, X) of a file with one frame, in float64 or float32.

    pydicom decodes what it can; other compressions (JPEG lossless) are left to GDCM, which is in SimpleITK.

    Raises:
        DataError: it cannot be read or decoded, has another size, or holds what is no number; names it.
    """
    dataset = read_dataset(path, pixels=True, force=True)
    with reading(f"{path}: its pixels cannot be read"):
        _add_syntax(dataset)
        can_decode = _can_decode(dataset.file_meta.TransferSyntaxUID)
    values = _by_pydicom(path, dataset) if can_decode else _by_gdcm(path)
    if values.shape != shape:
        raise DataError(f"{path} holds {values.shape} pixels, its header said {shape} (rows, columns)")
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds values that are no numbers; check RescaleSlope and RescaleIntercept")
    return values


def _add_syntax(dataset: Dataset) -> None:
    """Say how a file is encoded that has no letters DICM, and so no word on it: as it was read."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _can_decode(syntax: str) -> bool:
    """Whether pydicom decodes a transfer syntax with what is installed."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    if not uid.is_compressed or uid.is_deflated:
        return True
    try:
        return get_decoder(uid).is_available
    except NotImplementedError:
        return False


def _by_pydicom(path: Path, dataset: Dataset) -> np.ndarray:
    from pydicom.pixels.processing import apply_modality_lut

    with reading(f"{path}: its pixels cannot be read"):
        stored = dataset.pixel_array
        for keyword, neutral in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
            if dataset.get(keyword) is None:  # pydicom applies neither where one lacks
                setattr(dataset, keyword, neutral)
        return apply_modality_lut(stored, dataset)


def _by_gdcm(path: Path) -> np.ndarray:
    """As :func:`_by_pydicom`, by SimpleITK; as float32, as its own type would be cut to integers."""
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32, imageIO="GDCMImageIO")
    except RuntimeError as error:
        cause = one_line(str(error).strip().splitlines()[-1])
        raise DataError(
            f"{path}: no decoder for its compression is installed ({cause}); export it uncompressed"
        ) from None
    values = sitk.GetArrayFromImage(image)
    return values[0] if values.ndim == 3 else values
