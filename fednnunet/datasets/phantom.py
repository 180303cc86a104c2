"""Synthetic breast MRI of several centres, in nnU-Net's raw format.

What is assumed, so that a result on it can be read for what it is:

* Four training centres take their names, their proportions of cases (ISPY2 halved), and the ratios of their slice
  spacings from the MAMA-MIA cohorts of the paper's Table 3, and one external centre from EuCanImage. DUKE has twice
  the pixels of the others across the same breast; in the paper's Table 1 it has twice the pixels, too, but of the
  others' size. Volumes are small (6 to 8 slices) so that a CPU trains on them.
* A case is a breast-shaped outline with fatty and glandular texture, one to three lesions, and three bright or dark
  vessels and cysts that are no lesions but look alike.
* A lesion has one of four appearances: bright, dark, with a bright rim, or textured. All centres see all four, in
  proportions of their own, so a centre with few cases has seen few examples of some: what federation can help.
* A centre's scanner is a gain, a gamma, a smooth bias field and Rician noise.

Nothing here was chosen to make one set-up win over another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from fednnunet.errors import DataError

GENERATOR_VERSION = 1
"""Part of a dataset's digest: raised when the same parameters give other images."""
NOTE = "phantom.json"
APPEARANCES = ("bright", "dark", "rim", "textured")


@dataclass(frozen=True)
class PhantomCentre:
    """A centre's cases and scanner.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        cases: how many.
        shape: voxels (Z, Y, X); each case differs from it by up to 10 % in plane.
        spacing: mm (Z, Y, X); each case differs from it by up to 3 %.
        gain: factor on intensities.
        gamma: contrast curve; 1 is linear.
        bias: amplitude of the bias field, as a fraction.
        noise: standard deviation of the Rician noise, in intensities before the gain (tissue is about 0.6).
        lesion_radius: smallest and largest, mm.
        appearances: weights of bright, dark, rim and textured lesions.
        external: cases go to ``imagesTs`` and ``labelsTs``.
    """

    dataset: str
    cases: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    gain: float
    gamma: float
    bias: float
    noise: float
    lesion_radius: tuple[float, float]
    appearances: tuple[float, float, float, float]
    external: bool = False


def make_phantom(folder: Path, centres: Mapping[str, Mapping[str, Any]], seed: int) -> list[Path]:
    """Write one dataset a centre below ``folder``; what is there with the same parameters stays.

    A case depends on the seed, its centre and its number alone. A dataset appears under its name when it is whole.

    Args:
        folder: of the raw datasets.
        centres: centre name to the fields of :class:`PhantomCentre`.
        seed: of everything.

    Returns:
        The datasets' folders.

    Raises:
        DataError: a folder of that name is there which was not made here; it is left alone.
    """
    made = []
    for name, fields in centres.items():
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        centre = PhantomCentre(**values)
        target = Path(folder) / centre.dataset
        note = json.dumps({"version": GENERATOR_VERSION, "seed": seed, "centre": name, **asdict(centre)}, indent=1)
        if not _is_there(target, note):
            _make_centre(target, name, centre, seed, note)
        made.append(target)
    return made


def _is_there(target: Path, note: str) -> bool:
    return (target / NOTE).is_file() and (target / NOTE).read_text() == note


def _make_centre(target: Path, name: str, centre: PhantomCentre, seed: int, note: str) -> None:
    if target.exists() and not (target / NOTE).is_file():
        raise DataError(
            f"centre {name}: {target} is there and is no phantom (it has no {NOTE}); choose another dataset.raw_folder"
        )
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    part = "Ts" if centre.external else "Tr"
    try:
        for sub in ("images", "labels"):
            (partial / f"{sub}{part}").mkdir(parents=True)
        centre_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        for number in range(centre.cases):
            rng = np.random.default_rng([seed, centre_seed, number])
            image, label, spacing = make_case(centre, rng)
            case = f"{name}_{number:03d}"
            _write(image, spacing, partial / f"images{part}" / f"{case}_0000.nii.gz")
            _write(label, spacing, partial / f"labels{part}" / f"{case}.nii.gz")
        description = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "tumour": 1},
            "numTraining": 0 if centre.external else centre.cases,
            "file_ending": ".nii.gz",
        }
        (partial / "dataset.json").write_text(json.dumps(description, indent=1))
        (partial / NOTE).write_text(note)
        _put_in_place(partial, target, note)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, target: Path, note: str) -> None:
    """``target`` becomes ``partial``, unless another run made the same meanwhile and may be reading it."""
    if _is_there(target, note):
        return
    retired = partial.with_name(f"{partial.name}.old")
    try:
        if target.exists():
            os.rename(target, retired)
        os.rename(partial, target)
    except OSError:
        if not _is_there(target, note):
            raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)


def _write(array: np.ndarray, spacing: Sequence[float], path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in spacing[::-1]])
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def make_case(
    centre: PhantomCentre, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Image (Z, Y, X) in int16, label map in uint8, and spacing in mm."""
    z, y, x = centre.shape
    in_plane = rng.uniform(0.9, 1.1)
    shape = (z + int(rng.integers(-1, 2)), round(y * in_plane), round(x * in_plane))
    scale = rng.uniform(0.97, 1.03)
    spacing = (centre.spacing[0], centre.spacing[1] * scale, centre.spacing[2] * scale)
    grid = np.meshgrid(
        *((np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing, strict=True)),
        indexing="ij",
    )
    extent = np.array([size * step / 2 for size, step in zip(shape, spacing, strict=True)])
    inside, tissue = _breast(grid, extent, spacing, rng)
    label = np.zeros(shape, dtype=np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        mask, contrast = _lesion(centre, grid, extent, spacing, rng)
        mask &= inside > 0.5
        tissue = np.where(mask, tissue + contrast, tissue)
        label[mask] = 1
    for _ in range(3):
        tissue = tissue + _distractor(centre, grid, extent, spacing, rng) * (inside > 0.5) * (label == 0)
    return _scan(tissue * inside, centre, spacing, rng), label, spacing


def _smooth_noise(
    shape: Sequence[int], spacing: Sequence[float], scale_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise smoothed to ``scale_mm``, of mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.standard_normal(tuple(shape)), [scale_mm / step for step in spacing], mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _breast(
    grid: Sequence[np.ndarray], extent: np.ndarray, spacing: Sequence[float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Soft mask of a half-ellipse that grows from the chest wall, and its fatty and glandular texture."""
    shape = grid[0].shape
    wall = extent[1] * rng.uniform(0.75, 0.9)
    height, width = extent[1] * rng.uniform(1.45, 1.65), extent[2] * rng.uniform(0.8, 0.92)
    wobble = 0.05 * _smooth_noise(shape, spacing, 14.0, rng)
    radius = ((grid[1] - wall) / height) ** 2 + (grid[2] / width) ** 2 + 0.1 * (grid[0] / extent[0]) ** 2
    inside = 1 / (1 + np.exp((radius + wobble - 1) * 30))
    inside = np.where(grid[1] > wall, 0.75 * (1 + 0.1 * wobble), inside)
    gland = 1 / (1 + np.exp(-3 * _smooth_noise(shape, spacing, 6.0, rng) + 3 * (radius - 0.4)))
    texture = 0.5 + 0.16 * gland + 0.04 * _smooth_noise(shape, spacing, 2.0, rng)
    return inside, texture


def _place(extent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A point in the gland, mm from the volume's centre (Z, Y, X)."""
    return np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.6), rng.uniform(-0.5, 0.5)]) * extent


def _lesion(
    centre: PhantomCentre,
    grid: Sequence[np.ndarray],
    extent: np.ndarray,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask of an irregular lesion, and what it adds to the tissue."""
    shape = grid[0].shape
    radius = rng.uniform(*centre.lesion_radius)
    at = _place(extent, rng)
    stretch = rng.uniform(0.8, 1.25, 3)
    distance = np.sqrt(sum(((g - p) * s) ** 2 for g, p, s in zip(grid, at, stretch, strict=True))) / radius
    distance = distance * (1 + 0.16 * _smooth_noise(shape, spacing, radius * 0.5, rng))
    mask = distance < 1
    weights = np.array(centre.appearances, dtype=float)
    appearance = APPEARANCES[rng.choice(len(APPEARANCES), p=weights / weights.sum())]
    strength = rng.uniform(0.16, 0.3)
    if appearance == "bright":
        contrast = np.full(shape, strength)
    elif appearance == "dark":
        contrast = np.full(shape, -strength)
    elif appearance == "rim":
        contrast = np.where(distance > 0.6, 1.3 * strength, -0.4 * strength)
    else:
        contrast = 1.1 * strength * np.sign(_smooth_noise(shape, spacing, 1.6, rng))
    return mask, contrast


def _distractor(
    centre: PhantomCentre,
    grid: Sequence[np.ndarray],
    extent: np.ndarray,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """A vessel (long, thin) or a cyst (round, smooth): what it adds to the tissue."""
    at = _place(extent, rng)
    strength = rng.uniform(0.14, 0.28) * rng.choice([-1, 1])
    low, high = centre.lesion_radius
    if rng.random() < 0.5:
        direction = rng.standard_normal(3) * (0.3, 1, 1)
        direction /= np.linalg.norm(direction)
        offset = [g - p for g, p in zip(grid, at, strict=True)]
        along = sum(o * d for o, d in zip(offset, direction, strict=True))
        across = np.sqrt(np.maximum(sum(o**2 for o in offset) - along**2, 0))
        across = across + 1.2 * _smooth_noise(grid[0].shape, spacing, 8.0, rng)
        return strength * (across < rng.uniform(0.25, 0.4) * low) * (np.abs(along) < 2.5 * high)
    radius = rng.uniform(0.5, 0.8) * low
    distance = np.sqrt(sum((g - p) ** 2 for g, p in zip(grid, at, strict=True))) / radius
    return strength / (1 + np.exp((distance - 1) * 12))


def _scan(tissue: np.ndarray, centre: PhantomCentre, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """What the centre's scanner makes of it: bias field, gamma, Rician noise, gain."""
    bias = np.exp(centre.bias * _smooth_noise(tissue.shape, spacing, 35.0, rng))
    signal = np.clip(tissue * bias, 0, None) ** centre.gamma
    real = signal + centre.noise * rng.standard_normal(tissue.shape)
    imaginary = centre.noise * rng.standard_normal(tissue.shape)
    gain = 1000 * centre.gain * rng.uniform(0.85, 1.15)
    return np.clip(gain * np.hypot(real, imaginary), 0, np.iinfo(np.int16).max).astype(np.int16)
