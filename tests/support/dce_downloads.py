"""Miniature downloads of breast DCE-MRI, laid out as MAMA-MIA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fednnunet.conversion.scan_result import SourceCase, SourceImage

AXIAL = (1, 0, 0, 0, 1, 0, 0, 0, 1)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)
"""Direction cosines: slices run from right to left."""
TUMOUR = {1: "tumour"}


def write_image(path: Path, value: int = 0, direction: tuple[int, ...] = AXIAL) -> Path:
    array = np.zeros((3, 8, 8), dtype=np.uint8)
    array[1, 2:4, 2:4] = value
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.7, 2.0))
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_patient(
    root: Path,
    patient: str,
    phases: int = 3,
    direction: tuple[int, ...] = AXIAL,
    file_case: Callable[[str], str] = str.upper,
    masks: str = "segmentations/expert",
) -> None:
    for phase in range(phases):
        write_image(root / f"images/{patient}/{file_case(patient)}_{phase:04d}.nii.gz", 10 * phase, direction)
    write_image(root / masks / f"{file_case(patient)}.nii.gz", 1, direction)


def phase(root: Path, patient: str, number: int) -> Path:
    return root / f"images/{patient}/{patient}_{number:04d}.nii.gz"


def expected_case(root: Path, patient: str, *channels: SourceImage, masks: str = "segmentations/expert") -> SourceCase:
    centre = patient.partition("_")[0]
    return SourceCase(patient, centre, channels, SourceImage(root / masks / f"{patient}.nii.gz"), TUMOUR)
