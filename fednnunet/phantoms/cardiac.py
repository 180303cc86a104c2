"""Synthetic short-axis cine MRI modelled on M&Ms and ACDC (``dataset=phantom_mnms``).

What is assumed:

* A patient gives two cases, end-diastole (ED) and end-systole (ES): the same heart, chest and scanner, with a smaller
  cavity and a thicker wall at ES. Ejection fraction and wall thickness range from dilated to hypertrophic hearts.
* The left ventricle (LV) is half an ellipsoid, so that its short-axis sections are circles that shrink towards the
  apex, in a ring of myocardium (MYO); the right ventricle (RV) is a crescent beside it that ends before the apex.
* Slices are few and thick: intensities are averaged over a slice's thickness, slices are shifted against each other by
  breath-holds, and slices beyond apex and base hold no heart, or unlabelled atria.
* Blood and fat are bright (balanced SSFP), myocardium darker, lungs dark. The descending aorta looks like a small LV,
  papillary muscles belong to the LV.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fednnunet.phantoms.collection import Grid, MriCentre, Scale, draw_scanner, draw_volume
from fednnunet.phantoms.drawing import Scanner, coordinates, scan, smooth_noise, soft
from fednnunet.phantoms.writer import PhantomCase

VERSION = 1
"""Raised when the same parameters give other images."""
LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
PHASES = ("ED", "ES")
BLOOD, MUSCLE, FAT, LUNG = 0.85, 0.36, 0.75, 0.07
"""Signal of tissues before the scanner."""
SUBSLICES = (-1 / 3, 0.0, 1 / 3)
"""Positions at which a slice is sampled, in parts of its thickness."""


def draw_study(
    name: str, centre: MriCentre, scale: Scale, scanners: Mapping[str, Scanner], rng: np.random.Generator
) -> list[PhantomCase]:
    """ED and ES of a patient (:data:`fednnunet.phantoms.generate.DrawStudy`)."""
    grid = scale.apply(draw_volume(centre, rng))
    scanner = draw_scanner(centre, scanners, rng)
    return [
        PhantomCase(f"{name}_{phase}", image, label, grid.spacing, patient=name)
        for phase, (image, label) in zip(PHASES, draw_patient(grid, scanner, rng), strict=True)
    ]


@dataclass(frozen=True)
class _Heart:
    """One phase of a heart; mm and radians.

    Attributes:
        middle: where the long axis meets the middle slice (Y, X).
        tilt: tilt of the long axis, mm in plane per mm along it (Y, X).
        base: position of the base, mm from the middle slice; the apex is below it.
        length: length of the LV's cavity.
        cavity: radius of the LV's cavity at the base.
        wall: thickness of the myocardium.
        septum: direction from LV to RV.
        right: width of the RV in radii of the LV's outline.
    """

    middle: tuple[float, float]
    tilt: tuple[float, float]
    base: float
    length: float
    cavity: float
    wall: float
    septum: float
    right: float


def _draw_heart(grid: Grid, rng: np.random.Generator) -> tuple[_Heart, _Heart]:
    """A patient's heart at ED and ES."""
    stack = grid.shape[0] * grid.spacing[0]
    cavity, wall = rng.uniform(20, 31), rng.uniform(6, 13)
    length = min(rng.uniform(75, 100), 0.8 * stack)
    y, x = rng.uniform(-18, 18, 2)
    diastole = _Heart(
        middle=(y, x),
        tilt=(rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15)),
        base=length / 2 + rng.uniform(-0.5, 0.5) * (0.9 * stack - length),
        length=length,
        cavity=cavity,
        wall=wall,
        septum=rng.uniform(-0.5, 0.5) + np.pi,
        right=rng.uniform(0.85, 1.15),
    )
    squeezed = rng.uniform(0.6, 0.88)
    muscle = (cavity + wall) ** 2 - cavity**2  # keeps its area
    systole = _Heart(
        middle=diastole.middle,
        tilt=diastole.tilt,
        base=diastole.base - 0.1 * length,  # the base moves towards the apex
        length=0.9 * length,
        cavity=cavity * squeezed,
        wall=np.sqrt((cavity * squeezed) ** 2 + muscle) - cavity * squeezed,
        septum=diastole.septum,
        right=diastole.right * (0.45 + 0.55 * squeezed),
    )
    return diastole, systole


def draw_patient(grid: Grid, scanner: Scanner, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """ED and ES, each image in int16 and label map in uint8 (Z, Y, X)."""
    at = coordinates(grid.shape, grid.spacing)
    for axis in at[1:]:
        axis += rng.normal(0, 1.5, (grid.shape[0], 1, 1))  # breath-holds
    hearts = _draw_heart(grid, rng)
    chest = _chest(at, hearts[0], grid, rng)
    papillary = rng.uniform(0, 2 * np.pi, 2)
    texture = 1 + 0.05 * smooth_noise(grid.shape, grid.spacing, 3.0, rng)
    cases = []
    for heart in hearts:
        tissue = np.zeros(grid.shape)
        for offset in SUBSLICES:
            tissue += _with_heart(chest, at, heart, offset * grid.spacing[0], papillary) / len(SUBSLICES)
        label = np.zeros(grid.shape, dtype=np.uint8)
        outline, cavity, right = _ventricles(at, heart, 0.0)
        for mask, name in ((right, "RV"), (outline, "MYO"), (cavity, "LV")):
            label[mask < 0] = LABELS[name]
        cases.append((scan(tissue * texture, scanner, grid.spacing, rng), label))
    return cases


def _ventricles(at: list[np.ndarray], heart: _Heart, offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance (mm, about) from LV's outline, its cavity and RV, below 0 within, in slices shifted by ``offset``."""
    along, y, x = _heart_coordinates(at, heart, offset)
    from_axis = np.hypot(y, x)
    below_base = np.where(along < 0, np.inf, 0.0)
    outer = heart.cavity + heart.wall
    outline = from_axis - outer * _half_ellipse(along / (heart.length + heart.wall))
    cavity = from_axis - heart.cavity * _half_ellipse(along / heart.length)
    sideways, forward = _turned(y, x, heart.septum)
    section = np.maximum(_half_ellipse(along / (0.85 * heart.length)), 1e-3)
    width, height = 1.15 * heart.right * outer * section, 1.2 * outer * section
    right = (np.sqrt(((forward - 0.75 * outer) / width) ** 2 + (sideways / height) ** 2) - 1) * width
    return (
        outline + below_base,
        np.where(along < heart.length, cavity, np.inf) + below_base,
        np.maximum(right, -outline) + below_base,
    )


def _heart_coordinates(at: list[np.ndarray], heart: _Heart, offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance from the base towards the apex, and in plane from the long axis (Y, X); mm."""
    z = at[0] + offset
    return heart.base - z, at[1] - heart.middle[0] - heart.tilt[0] * z, at[2] - heart.middle[1] - heart.tilt[1] * z


def _half_ellipse(along: np.ndarray) -> np.ndarray:
    """Radius of a half-ellipsoid from its base (0) to its tip (1)."""
    return np.sqrt(np.clip(1 - np.clip(along, 0, None) ** 2, 0, None))


def _turned(y: np.ndarray, x: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Across and along the direction ``angle``."""
    return y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)


def _with_heart(
    chest: np.ndarray, at: list[np.ndarray], heart: _Heart, offset: float, papillary: np.ndarray
) -> np.ndarray:
    """The chest's signal with the heart in it."""
    outline, cavity, right = _ventricles(at, heart, offset)
    along, y, x = _heart_coordinates(at, heart, offset)
    tissue = chest
    outer = heart.cavity + heart.wall
    sideways, forward = _turned(y, x, heart.septum)
    left_atrium, right_atrium = np.hypot(sideways, forward) - 0.8 * outer, np.hypot(sideways, forward - 1.5 * outer)
    atria = np.where((along < 0) & (along > -35), np.minimum(left_atrium, right_atrium - 0.6 * outer), np.inf)
    around = np.minimum(outline, np.minimum(right, atria))
    for distance, signal in (
        (around - 6, FAT),
        (around - 3, MUSCLE),  # the thin wall of RV and atria
        (atria, BLOOD),
        (outline, MUSCLE),
        (right, BLOOD),
        (cavity, BLOOD),
    ):
        within = soft(distance, 1.0)
        tissue = tissue * (1 - within) + signal * within
    for angle in papillary:
        y_muscle, x_muscle = 0.62 * heart.cavity * np.sin(angle), 0.62 * heart.cavity * np.cos(angle)
        size = 0.18 * heart.cavity * ((along > 0.2 * heart.length) & (along < 0.75 * heart.length))
        within = soft(np.hypot(y - y_muscle, x - x_muscle) - size, 1.0) * (size > 0)
        tissue = tissue * (1 - within) + MUSCLE * within
    return tissue


def _chest(at: list[np.ndarray], heart: _Heart, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Signal of everything but the heart: air, fat, muscle, lungs, liver, aorta."""
    y, x = at[1] - rng.uniform(10, 30), at[2] + rng.uniform(10, 40)
    front, side = rng.uniform(95, 125), rng.uniform(140, 175)
    radius = np.sqrt((y / front) ** 2 + (x / side) ** 2) * front
    radius = radius + 3 * smooth_noise(grid.shape, grid.spacing, 25.0, rng)
    tissue = np.zeros(grid.shape)
    for depth, signal in ((0.0, FAT), (rng.uniform(8, 25), 0.4), (rng.uniform(30, 40), LUNG)):
        within = soft(radius - (front - depth), 0.7)
        tissue = tissue * (1 - within) + signal * within
    liver = np.hypot(y - 0.55 * front, 0.7 * (x + 0.45 * side)) - 0.6 * front - 0.2 * at[0]
    within = soft(liver, 0.5) * (radius < front - 25)
    tissue = tissue * (1 - within) + 0.42 * within
    outer = heart.cavity + heart.wall
    aorta = np.hypot(at[1] - heart.middle[0] - outer - 22, at[2] - heart.middle[1] - 20) - rng.uniform(9, 13)
    within = soft(aorta, 1.0)
    return tissue * (1 - within) + BLOOD * within
