"""The generated hospitals: one scanner, so that only what was trained on tells their cases apart."""

from __future__ import annotations

import json
from pathlib import Path

from fednnunet.datasets.splits import SPLITS_FILE
from fednnunet.files import write_atomically
from fednnunet.phantoms.breast_small import make_small_phantom

NODES = ("A", "B", "C", "D")
"""Hospitals that train together."""
LARGE = "Large"
"""A hospital with as many cases as they have together: noise needs many."""
REFERENCE = "Reference"
"""A hospital outside the federation: on its images the attacker trains the model that others are compared with."""
CASES = {**dict.fromkeys(NODES, (15, 40)), LARGE: (60, 40), REFERENCE: (60, 1)}
"""Cases of a hospital that are trained on, and those that are held out."""
DATASETS = {name: f"Dataset{number}_Privacy{name}" for number, name in enumerate(CASES, 401)}
CENTRE = {
    "shape": [3, 32, 32],  # voxels (Z, Y, X)
    "spacing": [8.0, 2.7, 2.7],  # mm
    "gain": 1.0,
    "gamma": 1.0,
    "bias": 0.15,
    "noise": 0.04,
    "lesion_radius": [9.0, 16.0],  # mm
    "appearances": [0.25, 0.25, 0.25, 0.25],
}


def make_images(folder: Path, seed: int) -> None:
    """Write one dataset per hospital, with a split into training and held-out cases; what exists stays."""
    centres = {name: {**CENTRE, "dataset": DATASETS[name], "cases": sum(CASES[name])} for name in CASES}
    for dataset, (training, _) in zip(make_small_phantom(folder, centres, seed), CASES.values(), strict=True):
        names = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
        split = [{"train": names[:training], "val": names[training:]}]
        write_atomically(dataset / SPLITS_FILE, json.dumps(split, indent=1))
