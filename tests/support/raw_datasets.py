"""Write or change a raw dataset for a test."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
BRATS = {"background": 0, "WT": [1, 2, 3], "TC": [1, 2], "ET": 1}
MISREAD = {
    "channel names inverted": ({"channel_names": {"MR": 0}}, 'in that order; it is {"MR": 0}'),
    "channel names with a gap": (
        {"channel_names": {"0": "T1", "1": "T2", "3": "FLAIR"}},
        'in that order; it is {"0": "T1", "1": "T2", "3": "FLAIR"}',
    ),
    "channel keys in another order": (
        {"channel_names": {"1": "MR", "0": "CT"}},
        'in that order; it is {"1": "MR", "0": "CT"}',
    ),
    "region order unknown": ({"labels": REGIONS, "regions_class_order": [5, 9]}, "value 1 becomes 5"),
    "region order of values": ({"labels": BRATS, "regions_class_order": [1, 2, 3]}, "value 1 becomes 3"),
    "region keys sorted": (
        {"labels": dict(sorted(REGIONS.items())), "regions_class_order": [1, 2]},
        "value 1 becomes 2",
    ),
}
"""Fields of a ``dataset.json`` that nnU-Net would misread, and part of the line that says so."""


def centres_override(folders: Mapping[str, str], external: Collection[str] = ()) -> str:
    """The command-line override that names these centres: name to dataset."""
    centres = (
        f"{{name: {name}, dataset: {folder}, external: {str(name in external).lower()}}}"
        for name, folder in folders.items()
    )
    return f"dataset.centres=[{', '.join(centres)}]"


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
