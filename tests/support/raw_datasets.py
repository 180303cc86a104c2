"""Change a raw dataset that a test has written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def change_description(folder: Path, **fields: Any) -> None:
    path = folder / "dataset.json"
    description = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], spacing: tuple[float, ...] | None = None) -> None:
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(spacing or image.GetSpacing())
    sitk.WriteImage(changed, str(path))
