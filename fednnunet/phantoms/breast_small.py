"""Synthetic breast MRI of several centres, in nnU-Net's raw format.

What is assumed, so that a result on it can be read for what it is:

* Four training centres take their names, their proportions of cases (ISPY2 halved), and the ratios of their slice
  spacings from the MAMA-MIA cohorts of the paper's Table 3, and one external centre from EuCanImage. DUKE has twice
  the pixels of the others across the same breast; in the paper's Table 1 it has twice the pixels, too, but of the
  others' size. Volumes are small (6 to 8 slices) so that a CPU trains on them.
* A case is a breast-shaped outline with fatty and glandular texture, one to three lesions, and three bright or dark
  vessels and cysts that look like lesions but are none.
* A lesion has one of four appearances: bright, dark, with a bright rim, or textured. All centres see all four, in
  proportions of their own, so a centre with few cases has seen few examples of some: what federation can help.
* A centre's scanner is a gain, a gamma, a smooth bias field and Rician noise.

Nothing here was chosen to make one strategy win over another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet.phantoms.drawing import Scanner, coordinates, irregular_distance, scan, smooth_noise, vessel
from fednnunet.phantoms.writer import PhantomCase, case_rng, with_tuples, write_dataset

GENERATOR_VERSION = 1
"""Part of a dataset's note; raised when the same parameters give other images."""
APPEARANCES = ("bright", "dark", "rim", "textured")


@dataclass(frozen=True)
class PhantomCentre:
    """A centre's cases and scanner.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        cases: number of cases.
        shape: voxels (Z, Y, X); each case differs from it by up to 10 % in plane.
        spacing: mm (Z, Y, X); each case differs from it by up to 3 %.
        gain: factor on intensities.
        gamma: contrast curve; 1 is linear.
        bias: amplitude of the bias field, as a fraction.
        noise: standard deviation of the Rician noise, in intensities before the gain (tissue is about 0.6).
        lesion_radius: smallest and largest radius, mm.
        appearances: weights of bright, dark, rim and textured lesions.
        external: whether cases go to ``imagesTs`` and ``labelsTs``.
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


def make_small_phantom(folder: Path, centres: Mapping[str, Mapping[str, Any]], seed: int) -> list[Path]:
    """Write one dataset per centre below ``folder``; what exists with the same parameters stays.

    A case depends only on the seed, its centre and its number. A dataset appears under its name when it is complete.

    Args:
        folder: folder of the raw datasets.
        centres: centre name to the fields of :class:`PhantomCentre`.
        seed: random seed of all images.

    Returns:
        The datasets' folders.

    Raises:
        DataError: a folder of that name exists and was not made here; it is left alone.
    """
    made = []
    for name, fields in centres.items():
        centre = PhantomCentre(**with_tuples(fields))
        target = Path(folder) / centre.dataset
        write_dataset(
            target,
            name,
            _cases(name, centre, seed),
            note=json.dumps({"version": GENERATOR_VERSION, "seed": seed, "centre": name, **asdict(centre)}, indent=1),
            channels=["MRI"],
            labels={"background": 0, "tumour": 1},
            external=centre.external,
        )
        made.append(target)
    return made


def _cases(name: str, centre: PhantomCentre, seed: int) -> Iterator[PhantomCase]:
    for number in range(centre.cases):
        image, label, spacing = make_case(centre, case_rng(seed, name, number))
        yield PhantomCase(f"{name}_{number:03d}", image, label, spacing)


def make_case(
    centre: PhantomCentre, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Image (Z, Y, X) in int16, label map in uint8, and spacing in mm."""
    z, y, x = centre.shape
    in_plane = rng.uniform(0.9, 1.1)
    shape = (z + int(rng.integers(-1, 2)), round(y * in_plane), round(x * in_plane))
    scale = rng.uniform(0.97, 1.03)
    spacing = (centre.spacing[0], centre.spacing[1] * scale, centre.spacing[2] * scale)
    grid = coordinates(shape, spacing)
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
    scanner = Scanner(centre.gain, centre.gamma, centre.bias, centre.noise)
    return scan(tissue * inside, scanner, spacing, rng), label, spacing


def _breast(
    grid: Sequence[np.ndarray], extent: np.ndarray, spacing: Sequence[float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Soft mask of a half-ellipse that grows from the chest wall, and its fatty and glandular texture."""
    shape = grid[0].shape
    wall = extent[1] * rng.uniform(0.75, 0.9)
    height, width = extent[1] * rng.uniform(1.45, 1.65), extent[2] * rng.uniform(0.8, 0.92)
    wobble = 0.05 * smooth_noise(shape, spacing, 14.0, rng)
    radius = ((grid[1] - wall) / height) ** 2 + (grid[2] / width) ** 2 + 0.1 * (grid[0] / extent[0]) ** 2
    inside = 1 / (1 + np.exp((radius + wobble - 1) * 30))
    inside = np.where(grid[1] > wall, 0.75 * (1 + 0.1 * wobble), inside)
    gland = 1 / (1 + np.exp(-3 * smooth_noise(shape, spacing, 6.0, rng) + 3 * (radius - 0.4)))
    texture = 0.5 + 0.16 * gland + 0.04 * smooth_noise(shape, spacing, 2.0, rng)
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
    distance = irregular_distance(grid, _place(extent, rng), radius, spacing, rng)
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
        contrast = 1.1 * strength * np.sign(smooth_noise(shape, spacing, 1.6, rng))
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
        return strength * vessel(grid, at, low, 2.5 * high, spacing, rng)
    radius = rng.uniform(0.5, 0.8) * low
    distance = np.sqrt(sum((g - p) ** 2 for g, p in zip(grid, at, strict=True))) / radius
    return strength / (1 + np.exp((distance - 1) * 12))
