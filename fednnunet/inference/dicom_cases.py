"""DICOM series as cases: one volume each, and segmentations that refer to it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from fednnunet.datasets.raw import IMAGE_ENDINGS
from fednnunet.errors import ConfigError, DataError
from fednnunet.inference.cases import ImageCase, ModelInput
from fednnunet.inference.output import OF_SERIES

if TYPE_CHECKING:
    from fednnunet.dicom.series import Series

MAGIC = b"DICM"
"""After 128 bytes of a DICOM file."""
MOST_LOOKED_AT = 100
"""Files of a folder that are looked at to find out whether it holds DICOM."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A SeriesInstanceUID that can be the name of a file; one is of digits and dots, and comes from outside."""
MODALITIES = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA")
"""Of DICOM images; a channel of such a name is of this modality, as ``fednnunet convert dicom`` names them."""
NUMBERED = re.compile(r".+_\d{4}(" + "|".join(map(re.escape, IMAGE_ENDINGS)) + ")")
"""Names of images in nnU-Net's naming."""


def holds_dicom(inputs: Sequence[Path]) -> bool:
    """Whether the input is one folder in which, or below which, there are DICOM files, and no image of nnU-Net's."""
    if len(inputs) != 1 or not inputs[0].is_dir() or any(map(NUMBERED.fullmatch, os.listdir(inputs[0]))):
        return False
    looked_at = 0
    for folder, _, names in os.walk(inputs[0]):
        for name in sorted(names)[:MOST_LOOKED_AT]:
            looked_at += 1
            if looked_at > MOST_LOOKED_AT:
                return False
            if _is_dicom(Path(folder, name)):
                return True
    return False


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == MAGIC
    except OSError:
        return False


def find_dicom_cases(folder: Path, model: ModelInput) -> list[ImageCase]:
    """Every series of a folder and its folders as a case, named by its SeriesInstanceUID.

    Raises:
        ConfigError: the extra ``dicom`` is not installed.
        DataError: no series is a clean volume; or the model takes several channels, and which series is which is not
            known.
    """
    from fednnunet.dicom.series import look_into

    if len(model.channels) > 1:
        raise DataError(
            f"the model takes {len(model.channels)} channels ({', '.join(model.channels)}), and {folder} does not say "
            "which series is which; make images of them: fednnunet convert dicom"
        )
    content = look_into(folder)
    refused = [refusal for refusal in content.refusals if not refusal.is_set_aside]
    if not content.series:
        every = [refusal.reason for refusal in (*refused, *content.refusals)]
        raise DataError(every[0] if every else f"{folder} holds no DICOM image")
    cases = [_as_case(one, model.channels[0]) for one in content.series]
    cases += [ImageCase(one.uid or str(one.folder), (), problem=one.reason) for one in refused]
    return sorted(cases, key=lambda case: case.name)


def _as_case(series: Series, channel: str) -> ImageCase:
    problem = None
    if not NAME.fullmatch(series.uid):
        problem = f"{series.where}: its SeriesInstanceUID {series.uid[:80]!r} is none; give it one of digits and dots"
    elif channel.upper() in MODALITIES and series.modality != channel.upper():
        problem = (
            f"{series.where} is {series.modality or 'of no modality'}, and the model takes {channel}; leave it out"
        )
    return ImageCase(series.uid, (), problem, series)


def read_series(series: Series, reader: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels (1, Z, Y, X) and properties as a reader of nnU-Net gives them for the series as a NIfTI file.

    Raises:
        DataError: a slice cannot be read, or the model's reader takes no volumes with a place.
    """
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from fednnunet.dicom.series import read_volume

    volume = read_volume(series)
    if not np.isfinite(volume.array).all():
        raise DataError(f"{series.where} holds NaN or infinity")
    if type(reader) is SimpleITKIO:
        place = {"spacing": volume.spacing, "origin": volume.origin, "direction": volume.direction}
        return volume.array[None], {"sitk_stuff": place, "spacing": list(volume.spacing[::-1])}
    if ".nii.gz" not in reader.supported_file_endings:
        raise DataError(
            f"the model's reader, {type(reader).__name__}, takes no volumes with a place, as DICOM series are"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "series_0000.nii.gz"))
        sitk.WriteImage(volume.as_image(), path)
        return reader.read_images([path])


def check_segments(labels: Mapping[str, Any]) -> None:
    """Refuse labels that have no segments of their own.

    Raises:
        ConfigError: they are regions; or the extra ``dicom`` is not installed.
    """
    from fednnunet.dicom.library import require_dicom

    require_dicom()
    region = next((name for name, value in labels.items() if isinstance(value, list)), None)
    if region is not None:
        raise ConfigError(f"--dicom-seg: the model segments regions ({region}), which overlap; leave it out")


def write_seg(segmentation: Path, case: ImageCase, labels: Mapping[str, int]) -> None:
    """Write a DICOM SEG beside a segmentation that was written, on the grid of its series.

    Raises:
        DataError: the files of the series do not allow it.
    """
    from fednnunet.dicom.segmentation import write_segmentation

    assert case.series is not None, "of a series"
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(segmentation)))
    write_segmentation(segmentation.with_name(case.name + OF_SERIES[0]), voxels, case.series, labels)
