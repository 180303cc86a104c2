"""Write or change a raw dataset for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def write_description(folder: Path, **fields: Any) -> None:
    """A ``dataset.json`` of one channel and one label, with these fields instead of, or beside, its own."""
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(description))


def change_description(folder: Path, **fields: Any) -> None:
    path = folder / "dataset.json"
    description = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], spacing: tuple[float, ...] | None = None) -> None:
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(spacing or image.GetSpacing())
    sitk.WriteImage(changed, str(path))
