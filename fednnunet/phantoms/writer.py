"""Write generated datasets in nnU-Net's raw format; a dataset appears only when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from fednnunet.datasets.splits import SPLITS_FILE, splits_by_patient
from fednnunet.errors import DataError

NOTE = "phantom.json"
TRUTH_FOLDER = "labelsAll"
"""In a dataset's folder: what is there, annotated or not; nnU-Net and our readers do not look at it."""
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
"""Direction cosines in SimpleITK's order: x to the patient's left, y to the back, z to the head."""
SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
"""x to the back, y to the feet; z, from slice to slice, to the right."""


@dataclass(frozen=True)
class PhantomCase:
    """One image and its label map.

    Attributes:
        name: name of the case.
        image: voxels (Z, Y, X), or (Y, X) in 2D, of the first channel.
        label: label values of the same shape, uint8.
        spacing: mm (Z, Y, X); None for files without spacing.
        patient: id of the patient, whose cases stay together in the folds; the case's name if not given.
        direction: direction cosines of a volume in SimpleITK's order.
        truth: label values of everything that is there, annotated or not; None where all is annotated.
        others: images of the other channels, of the same shape.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    spacing: Sequence[float] | None
    patient: str = ""
    direction: tuple[float, ...] = AXIAL
    truth: np.ndarray | None = None
    others: Sequence[np.ndarray] = ()


def case_rng(seed: int, centre: str, number: int) -> np.random.Generator:
    """Random generator of one study, independent of all others."""
    centre_seed = int.from_bytes(hashlib.sha256(centre.encode()).digest()[:4], "little")
    return np.random.default_rng([seed, centre_seed, number])


def case_name(centre: str, number: int) -> str:
    """Name for nnU-Net's files, such as ``SierraLeone_007``."""
    return f"{re.sub(r'[^A-Za-z0-9-]', '', centre)}_{number:03d}"


def with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for a frozen dataclass, from YAML, which has lists but no tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def write_dataset(
    target: Path,
    centre: str,
    cases: Iterable[PhantomCase],
    *,
    note: str,
    channels: Sequence[str],
    labels: Mapping[str, int],
    external: bool,
    file_ending: str = ".nii.gz",
) -> None:
    """Write a centre's dataset, unless it exists with the same note.

    It appears under its name when it is complete.

    Args:
        target: folder ``DatasetXXX_Name``.
        centre: named in errors.
        cases: cases, drawn only if they are written.
        note: everything that the images depend on, written beside them.
        channels: names of the channels, one for each image of a case.
        labels: label name to value.
        external: whether cases go to ``imagesTs`` and ``labelsTs``.
        file_ending: ending of images and label maps.

    Raises:
        DataError: a folder of that name exists and was not made here; it is left alone.
    """
    if _exists(target, note):
        return
    if target.exists() and not (target / NOTE).is_file():
        raise DataError(
            f"centre {centre}: {target} exists and is not a phantom (it has no {NOTE}); "
            "choose another dataset.raw_folder"
        )
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    part = "Ts" if external else "Tr"
    try:
        for sub in ("images", "labels"):
            (partial / f"{sub}{part}").mkdir(parents=True)
        patients = {}
        for case in cases:
            for number, image in zip(range(len(channels)), (case.image, *case.others), strict=True):
                _write(image, case, partial / f"images{part}" / f"{case.name}_{number:04d}{file_ending}")
            _write(case.label, case, partial / f"labels{part}" / f"{case.name}{file_ending}")
            if case.truth is not None:
                (partial / TRUTH_FOLDER).mkdir(exist_ok=True)
                _write(case.truth, case, partial / TRUTH_FOLDER / f"{case.name}{file_ending}")
            patients[case.name] = case.patient or case.name
        if len(set(patients.values())) < len(patients) and not external:
            (partial / SPLITS_FILE).write_text(json.dumps(splits_by_patient(patients), indent=1))
        description = {
            "channel_names": {str(number): channel for number, channel in enumerate(channels)},
            "labels": dict(labels),
            "numTraining": 0 if external else len(patients),
            "file_ending": file_ending,
        }
        (partial / "dataset.json").write_text(json.dumps(description, indent=1))
        (partial / NOTE).write_text(note)
        _put_in_place(partial, target, note)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exists(target: Path, note: str) -> bool:
    return (target / NOTE).is_file() and (target / NOTE).read_text() == note


def _put_in_place(partial: Path, target: Path, note: str) -> None:
    """Move ``partial`` to ``target``, unless another run has made the same by now and may be reading it."""
    if _exists(target, note):
        return
    retired = partial.with_name(f"{partial.name}.old")
    try:
        if target.exists():
            os.rename(target, retired)
        os.rename(partial, target)
    except OSError:
        if not _exists(target, note):
            raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)


def _write(array: np.ndarray, case: PhantomCase, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    if case.spacing is not None:
        image.SetSpacing([float(value) for value in case.spacing[::-1]])
        image.SetDirection(case.direction)
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)
