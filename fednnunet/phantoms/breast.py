"""Synthetic breast MRI modelled on MAMA-MIA and EuCanImage (``dataset=phantom_mamamia``).

What is assumed:

* Images look like a first post-contrast phase with fat suppression: dark fat, glands that enhance a little, bright
  vessels, and one tumour that enhances most, evenly, in a rim, or in patches; its size and outline vary.
* Sagittal volumes hold one breast, axial ones both, with chest wall, lungs and heart behind them.
* Small round foci and vessels are as bright as the tumour; so is a part of the glands in some patients.
* A scanner is a vendor's gain, contrast, bias field and noise; 3 T has less noise and a less even field.

Geometry is drawn separately from images (:func:`fednnunet.phantoms.collection.draw_volume`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label as label_parts

from fednnunet.phantoms.collection import Grid, MriCentre, Scale, draw_scanner, draw_volume
from fednnunet.phantoms.drawing import (
    Scanner,
    coordinates,
    irregular_distance,
    scan,
    smooth_noise,
    soft,
    vessel,
)
from fednnunet.phantoms.writer import AXIAL, SAGITTAL, PhantomCase

VERSION = 1
"""Raised when the same parameters give other images."""
LABELS = {"background": 0, "tumour": 1}


@dataclass(frozen=True, kw_only=True)
class BreastCentre(MriCentre):
    """A centre with breast MRI.

    Attributes:
        sagittal: part of the studies that are sagittal; the others are axial.
        tumour_radius: smallest and largest radius, mm.
    """

    sagittal: float
    tumour_radius: tuple[float, float]


def draw_study(
    name: str, centre: BreastCentre, scale: Scale, scanners: Mapping[str, Scanner], rng: np.random.Generator
) -> list[PhantomCase]:
    """The one case of a study (:data:`fednnunet.phantoms.generate.DrawStudy`)."""
    grid = scale.apply(draw_volume(centre, rng))
    scanner = draw_scanner(centre, scanners, rng)
    sagittal = bool(rng.random() < centre.sagittal)
    image, label = draw_breast(grid, sagittal, centre.tumour_radius, scanner, rng)
    return [PhantomCase(name, image, label, grid.spacing, direction=SAGITTAL if sagittal else AXIAL)]


def draw_breast(
    grid: Grid, sagittal: bool, tumour_radius: tuple[float, float], scanner: Scanner, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image in int16 and label map in uint8, both (Z, Y, X)."""
    at = coordinates(grid.shape, grid.spacing)
    extent = np.array([size * step / 2 for size, step in zip(grid.shape, grid.spacing, strict=True)])
    depth, across = _from_the_chest_wall(at, extent, sagittal, rng)
    inside, gland, tissue = _breast(at, extent, depth, across, grid.spacing, rng)
    place = _place_tumour(at, inside, gland, rng)
    radius = min(rng.uniform(*tumour_radius), 0.35 * extent.min())
    distance = irregular_distance(at, place, radius, grid.spacing, rng, roughness=0.25)
    tumour = _largest_part((distance < 1) & (inside > 0.5))
    enhanced = _enhancement(distance, radius, grid.spacing, rng)
    for _ in range(int(rng.integers(3, 7))):
        tissue = np.where(_distractor(at, inside, gland, grid.spacing, rng), rng.uniform(0.55, 0.85), tissue)
    tissue = np.where(tumour, enhanced, tissue)
    tissue = tissue * inside + _behind(at, extent, depth, across, sagittal, grid.spacing, rng) * (depth < 0)
    return scan(tissue, scanner, grid.spacing, rng), tumour.astype(np.uint8)


def _from_the_chest_wall(
    at: Sequence[np.ndarray], extent: np.ndarray, sagittal: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Distance in front of the chest wall and across a breast, both 1 at the edge of a breast of usual size."""
    to_the_front, sideways, front, side = (at[2], at[1], *extent[[2, 1]]) if sagittal else (at[1], at[2], *extent[1:])
    wall = front * rng.uniform(0.4, 0.6)
    if sagittal:
        height = (front + wall) * rng.uniform(0.75, 0.92)
        across = (sideways - side * rng.uniform(-0.1, 0.1)) / (side * rng.uniform(0.7, 0.85))
        curve = 0.0
    else:
        height = side * rng.uniform(0.75, 1.05)
        across = (np.abs(sideways) - 0.47 * side) / (side * rng.uniform(0.36, 0.42))
        curve = 0.25 * front * (sideways / side) ** 2  # the chest is round
    return (wall + curve - to_the_front) / height, across


def _breast(
    at: Sequence[np.ndarray],
    extent: np.ndarray,
    depth: np.ndarray,
    across: np.ndarray,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Soft mask of the breasts, part of gland in every voxel, and its signal."""
    shape = at[0].shape
    wobble = 0.05 * smooth_noise(shape, spacing, 14.0, rng)
    radius = depth**2 + across**2 + 0.6 * (at[0] / extent[0]) ** 2
    inside = soft(radius + wobble - 1, 30) * (depth > 0)
    gland = soft(2.5 * (radius - rng.uniform(0.3, 0.6)) - smooth_noise(shape, spacing, 7.0, rng), 3)
    enhancement = rng.uniform(0.1, 0.35)  # of the background, which differs much between patients
    tissue = 0.18 + enhancement * gland + 0.03 * smooth_noise(shape, spacing, 2.0, rng)
    skin = np.abs(radius + wobble - 0.95) < 0.05
    return inside, gland, np.where(skin, 0.4, tissue)


def _place_tumour(
    at: Sequence[np.ndarray], inside: np.ndarray, gland: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A point (mm, Z, Y, X) well within a breast, more often in the gland."""
    likely = (np.where(inside > 0.9, 0.05 + gland, 0.0) ** 2).ravel().cumsum()
    voxel = min(int(np.searchsorted(likely, rng.uniform(0, likely[-1]))), likely.size - 1)
    return np.array([axis.flat[voxel] for axis in at])


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """Largest connected part of a mask; empty where the mask is empty."""
    parts, _ = label_parts(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return mask & (parts == sizes.argmax())


def _enhancement(distance: np.ndarray, radius: float, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Signal of a tumour: even, in a rim, or in patches."""
    strength = rng.uniform(0.55, 0.9)
    kind = rng.choice(3, p=(0.45, 0.3, 0.25))
    texture = smooth_noise(distance.shape, spacing, max(2.0, radius / 4), rng)
    if kind == 0:
        return strength * (1 + 0.08 * texture)
    if kind == 1:
        return strength * (0.55 + 0.5 * soft(0.6 - distance, 12))
    return strength * (0.85 + 0.25 * np.tanh(2 * texture))


def _distractor(
    at: Sequence[np.ndarray],
    inside: np.ndarray,
    gland: np.ndarray,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Mask of a vessel or a small round focus."""
    place = _place_tumour(at, inside, gland, rng)
    if rng.random() < 0.6:
        return vessel(at, place, 8.0, rng.uniform(20, 60), spacing, rng)
    return sum((g - p) ** 2 for g, p in zip(at, place, strict=True)) < rng.uniform(2.0, 5.0) ** 2


def _behind(
    at: Sequence[np.ndarray],
    extent: np.ndarray,
    depth: np.ndarray,
    across: np.ndarray,
    sagittal: bool,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Signal behind the chest wall: muscle, lung, and in axial images the enhanced heart."""
    wall = np.where(depth > -0.18, 0.32, 0.06) + 0.03 * smooth_noise(depth.shape, spacing, 4.0, rng)
    if sagittal:
        return wall
    heart = ((depth + 0.62) / 0.4) ** 2 + ((at[2] - 0.15 * extent[2]) / (0.4 * extent[2])) ** 2
    return np.where(soft(heart - 1, 15) > 0.5, 0.65, wall)
