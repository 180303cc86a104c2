"""Miniature downloads of fetal ultrasound, laid out as the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk


def draw(path: Path, seed: int, rgb: bool = False) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3) if rgb else (6, 8)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=rgb), str(path))


def draw_mask(path: Path, value: int = 255) -> None:
    values = np.zeros((6, 8), dtype=np.uint8)
    values[2:4, 2:6] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))


FRAMES = 12
Painted = dict[int, int | tuple[int, int]]
"""Frame to the value in its mask, or to value and number of rows."""


def write_stack(path: Path, values: np.ndarray) -> None:
    image = sitk.GetImageFromArray(values.astype(np.uint8))
    image.SetSpacing((0.28, 0.28, 0.28))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_mask_stack(path: Path, painted: Painted, frames: int = FRAMES) -> None:
    values = np.zeros((frames, 6, 8))
    for frame, what in painted.items():
        value, rows = what if isinstance(what, tuple) else (what, 2)
        values[frame, :rows, 2:6] = value
    write_stack(path, values)


def make_acouslic(folder: Path, masks: dict[str, Painted], subjects: Sequence[str] = ()) -> Path:
    root = folder / "acouslic-ai-train-set"
    for uuid, painted in masks.items():
        write_stack(root / "images/stacked_fetal_ultrasound" / f"{uuid}.mha", np.ones((FRAMES, 6, 8)))
        write_mask_stack(root / "masks/stacked_fetal_abdomen" / f"{uuid}.mha", painted)
    sweeps = [f"sweep_{number}_ac_mm" for number in range(1, 7)]
    rows: Iterable[str] = (
        f"{uuid},{subjects[number] if subjects else f's{number}'},231.7,,,,," for number, uuid in enumerate(masks)
    )
    table = root / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv"
    table.parent.mkdir(parents=True)
    table.write_text("\n".join([",".join(["uuid", "subject_id", *sweeps]), *rows]))
    return folder


CODES = {"Algeria": "DZA", "Egypt": "EGY", "Ghana": "GHA", "Malawi": "MWI"}
PLANES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")


def published(country: str, patient: int, plane: int) -> str:
    return f"patient{patient:03d}_{CODES[country]}_plane{plane}"


@pytest.fixture
def aimix(tmp_path: Path) -> Path:
    """Two patients per country with four planes each, two Spanish images, and masks of the abdomens."""
    source = tmp_path / "aimix"
    african = source / "Zenodo_dataset"
    lines, seed = ["Patient_num,Plane,Train,Center,Filename"], 0
    for country in CODES:
        for patient in (1, 2):
            for number, plane in enumerate(PLANES):
                name, seed = published(country, patient, number), seed + 1
                lines.append(f"{patient},{plane},{patient - 1},{country},{name}")
                draw(african / country / f"{name}.png", seed)
            if country != "Ghana":
                draw_mask(source / "masks" / country / f"{published(country, patient, 0)}.png")
    (african / "African_planes_database.csv").write_text("\n".join(lines))
    for number in (1, 2):
        draw(source / "Spain" / f"HCB {number}.png", 100 + number, rgb=True)
        draw_mask(source / "masks" / "Spain" / f"HCB {number}_mask.png", value=1)
    return source


BOTH = "046ed03e-4b35-4519-bb5f-cd4b0474a060"
ONLY_SUBOPTIMAL = "02d3a9bc-63e2-4deb-9dc1-dba17e7d54c1"
EMPTY = "1b3db504-c1fe-45f0-96dc-3cfb851d5bca"


@pytest.fixture
def acouslic(tmp_path: Path) -> Path:
    both: Painted = {1: (2, 5), 4: 1, 6: (1, 3), 7: (1, 3), 9: (2, 4)}
    return make_acouslic(tmp_path / "acouslic", {BOTH: both, ONLY_SUBOPTIMAL: {2: (2, 1), 3: (2, 4)}, EMPTY: {}})
