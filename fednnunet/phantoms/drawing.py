"""Tools that draw phantoms: coordinates in mm, smooth noise, soft edges, vessels, an MRI scanner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class Scanner:
    """How an MRI scanner shows tissue.

    Attributes:
        gain: factor on intensities; each case differs by up to 15 %.
        gamma: contrast curve; 1 is linear.
        bias: amplitude of the smooth bias field, as a fraction.
        noise: standard deviation of the Rician noise, in intensities before the gain (tissue is about 0.6).
    """

    gain: float
    gamma: float
    bias: float
    noise: float


def coordinates(shape: Sequence[int], spacing: Sequence[float]) -> list[np.ndarray]:
    """Distance of every voxel's centre from the middle of the image along each axis, in the spacing's unit."""
    axes = ((np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing, strict=True))
    return list(np.meshgrid(*axes, indexing="ij"))


def smooth_noise(
    shape: Sequence[int], spacing: Sequence[float], scale_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise smoothed to ``scale_mm``, of mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.standard_normal(tuple(shape)), [scale_mm / step for step in spacing], mode="wrap")
    return (noise - noise.mean()) / noise.std()


def soft(distance: np.ndarray, sharpness: float) -> np.ndarray:
    """1 where ``distance`` is well below 0, 0 where it is well above, and a slope in between."""
    return 1 / (1 + np.exp(np.minimum(distance * sharpness, 50)))


def irregular_distance(
    grid: Sequence[np.ndarray],
    at: np.ndarray,
    radius: float,
    spacing: Sequence[float],
    rng: np.random.Generator,
    roughness: float = 0.16,
) -> np.ndarray:
    """Distance from ``at`` in radii of an irregular, stretched ball; below 1 is inside."""
    stretch = rng.uniform(0.8, 1.25, 3)
    distance = np.sqrt(sum(((g - p) * s) ** 2 for g, p, s in zip(grid, at, stretch, strict=True))) / radius
    return distance * (1 + roughness * smooth_noise(grid[0].shape, spacing, radius * 0.5, rng))


def vessel(
    grid: Sequence[np.ndarray],
    at: np.ndarray,
    size: float,
    half_length: float,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Mask of a long, thin, winding tube through ``at``; its radius is 0.25 to 0.4 of ``size``, all in mm."""
    direction = rng.standard_normal(3) * (0.3, 1, 1)
    direction /= np.linalg.norm(direction)
    offset = [g - p for g, p in zip(grid, at, strict=True)]
    along = sum(o * d for o, d in zip(offset, direction, strict=True))
    across = np.sqrt(np.maximum(sum(o**2 for o in offset) - along**2, 0))
    across = across + 1.2 * smooth_noise(grid[0].shape, spacing, 8.0, rng)
    return (across < rng.uniform(0.25, 0.4) * size) * (np.abs(along) < half_length)


def scan(tissue: np.ndarray, scanner: Scanner, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Image of ``tissue`` with the scanner's bias field, gamma, Rician noise and gain; int16."""
    bias = np.exp(scanner.bias * smooth_noise(tissue.shape, spacing, 35.0, rng))
    signal = np.clip(tissue * bias, 0, None) ** scanner.gamma
    real = signal + scanner.noise * rng.standard_normal(tissue.shape)
    imaginary = scanner.noise * rng.standard_normal(tissue.shape)
    gain = 1000 * scanner.gain * rng.uniform(0.85, 1.15)
    return np.clip(gain * np.hypot(real, imaginary), 0, np.iinfo(np.int16).max).astype(np.int16)
