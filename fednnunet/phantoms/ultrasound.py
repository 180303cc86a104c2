"""Synthetic fetal ultrasound modelled on AIMIX and ACOUSLIC-AI (``dataset=phantom_aimix``).

What is assumed:

* An image is the fan of a curved probe: black outside it, echoes inside, weaker with depth, behind a shadow or two.
* The abdomen is an ellipse with a bright outline where the beam meets it head-on and gaps where it does not; in it
  lie stomach and vein (dark) and the spine (bright, with a shadow). The label is the ellipse, filled.
* Amniotic fluid (dark) surrounds part of it; another, smaller section with a bright outline lies beside it.
* Speckle multiplies echoes; a device is its gain, dynamic range, grain of speckle, attenuation and width of the fan.
* Files are PNG without spacing, so distances are in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from fednnunet.phantoms.collection import Centre, Scale
from fednnunet.phantoms.drawing import Scanner, smooth_noise, soft
from fednnunet.phantoms.writer import PhantomCase

VERSION = 1
"""Raised when the same parameters give other images."""
LABELS = {"background": 0, "abdomen": 1}
PROBE = 0.18
"""Distance from the centre of the fan's arcs to the image's upper edge, in heights of the image."""


@dataclass(frozen=True, kw_only=True)
class UltrasoundCentre(Centre):
    """A centre with ultrasound images.

    Attributes:
        resolution: mean height and width, pixels.
        resolution_spread: images are up to this part larger or smaller.
        sector: angle of the fan to either side, degrees.
        gain: dB added to all echoes.
        dynamic_range: dB from black to white.
        speckle: grain along and across the beam, pixels at full size.
        attenuation: dB over the depth of the image.
    """

    resolution: tuple[int, int]
    resolution_spread: float
    sector: float
    gain: float
    dynamic_range: float
    speckle: tuple[float, float]
    attenuation: float


def draw_study(
    name: str, centre: UltrasoundCentre, scale: Scale, _scanners: Mapping[str, Scanner], rng: np.random.Generator
) -> list[PhantomCase]:
    """The one image of a study (:data:`fednnunet.phantoms.generate.DrawStudy`)."""
    height, width = (scale.pixels(side) for side in draw_resolution(centre, rng))
    image, label = draw_abdomen((height, width), centre, scale.scale, rng)
    return [PhantomCase(name, image, label, spacing=None)]


def draw_resolution(centre: UltrasoundCentre, rng: np.random.Generator) -> tuple[int, int]:
    """Full-size height and width of an image."""
    size = rng.uniform(1 - centre.resolution_spread, 1 + centre.resolution_spread)
    height, width = centre.resolution
    return round(height * size), round(width * size)


@dataclass(frozen=True)
class _Ellipse:
    """An ellipse; lengths in heights of the image, origin in the middle of its upper edge."""

    y: float
    x: float
    long: float
    short: float
    angle: float

    def coordinates(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along the long and short axis; the outline is the unit circle."""
        y, x = y - self.y, x - self.x
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return (x * cos + y * sin) / self.long, (y * cos - x * sin) / self.short

    def radius(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Distance from the centre, 1 on the outline."""
        return np.hypot(*self.coordinates(y, x))


def draw_abdomen(
    shape: tuple[int, int], centre: UltrasoundCentre, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image and label map (Y, X), both uint8; ``scale`` is that of ``shape``."""
    height, width = shape
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    y, x = rows / height, (columns - width / 2) / height
    depth, angle = np.hypot(y + PROBE, x), np.arctan2(x, y + PROBE)
    fan = (np.abs(angle) < np.radians(centre.sector)) & (depth > PROBE + 0.03) & (depth < PROBE + 0.97)
    room = min(0.34, 0.7 * np.sin(np.radians(centre.sector)) * (PROBE + 0.5), 0.42 * width / height)
    long = room * rng.uniform(0.75, 1.0)
    abdomen = _Ellipse(
        rng.uniform(0.44, 0.6), rng.uniform(-0.08, 0.08), long, long * rng.uniform(0.76, 0.95), rng.uniform(0, np.pi)
    )
    echo = _echoes(y, x, angle, abdomen, rng)
    echo *= _shadows(depth, angle, rng)
    image = _display(echo, depth, fan, centre, scale, rng)
    return image, (abdomen.radius(y, x) < 1).astype(np.uint8)


def _echoes(y: np.ndarray, x: np.ndarray, angle: np.ndarray, abdomen: _Ellipse, rng: np.random.Generator) -> np.ndarray:
    """Amplitude that tissue sends back, about 1 at the brightest."""
    pixel = (1 / len(y), 1 / len(y))
    radius = abdomen.radius(y, x)
    texture = smooth_noise(y.shape, pixel, 0.02, rng)
    large = smooth_noise(y.shape, pixel, 0.12, rng)
    echo = 0.16 * np.exp(0.25 * texture + 0.5 * large)
    fluid = radius < 1.12 + 0.3 * (large + rng.uniform(-0.5, 0.9))
    echo = np.where(fluid, 0.012, echo)
    limb = _beside(abdomen, rng)
    echo = np.where(limb.radius(y, x) < 1, 0.12, echo)
    echo = np.maximum(echo, _outline(limb, y, x, angle, 0.5))
    echo = np.where(radius < 1, rng.uniform(0.09, 0.2) * np.exp(0.3 * texture), echo)
    along, across = abdomen.coordinates(y, x)
    turn = rng.uniform(0, 2 * np.pi)
    along, across = along * np.cos(turn) + across * np.sin(turn), across * np.cos(turn) - along * np.sin(turn)
    size = rng.uniform(0.12, 0.22)
    stomach = ((along - 0.45) / size) ** 2 + ((across + 0.15) / (0.7 * size)) ** 2
    vein = np.abs(across - 0.25 - 0.35 * along**2) + 2 * np.clip(np.abs(along + 0.05) - 0.35, 0, None)
    echo *= 1 - 0.9 * np.maximum(soft(stomach - 1, 6), soft(vein - 0.05, 60))
    spine = np.hypot(along + 0.75, across) - 0.1
    echo = np.maximum(echo, 0.9 * soft(spine, 40))
    behind = np.hypot(y + PROBE, x) > np.hypot(*_spine_at(abdomen, turn))
    beam = np.abs(angle - np.arctan2(_spine_at(abdomen, turn)[1], _spine_at(abdomen, turn)[0])) < 0.05
    echo = np.where(behind & beam & (spine > 0), 0.2 * echo, echo)
    return np.maximum(echo, _outline(abdomen, y, x, angle, rng.uniform(0.5, 1.0)))


def _spine_at(abdomen: _Ellipse, turn: float) -> tuple[float, float]:
    """Spine below the centre of the fan's arcs, and beside its axis."""
    along, across = -0.75 * np.cos(turn) * abdomen.long, -0.75 * np.sin(turn) * abdomen.short
    cos, sin = np.cos(abdomen.angle), np.sin(abdomen.angle)
    return abdomen.y + along * sin + across * cos + PROBE, abdomen.x + along * cos - across * sin


def _beside(abdomen: _Ellipse, rng: np.random.Generator) -> _Ellipse:
    """A limb's section beside the abdomen."""
    where = rng.uniform(0, 2 * np.pi)
    away = abdomen.long + rng.uniform(0.06, 0.15)
    long = rng.uniform(0.05, 0.11)
    return _Ellipse(
        abdomen.y + away * np.sin(where),
        abdomen.x + away * np.cos(where),
        long,
        long * rng.uniform(0.6, 1.0),
        rng.uniform(0, np.pi),
    )


def _outline(ellipse: _Ellipse, y: np.ndarray, x: np.ndarray, angle: np.ndarray, strength: float) -> np.ndarray:
    """Echo of an outline: strong where the beam meets it head-on."""
    along, across = ellipse.coordinates(y, x)
    cos, sin = np.cos(ellipse.angle), np.sin(ellipse.angle)
    normal_x = along / ellipse.long * cos - across / ellipse.short * sin
    normal_y = along / ellipse.long * sin + across / ellipse.short * cos
    length = np.maximum(np.hypot(normal_x, normal_y), 1e-6)
    head_on = np.abs((normal_x * np.sin(angle) + normal_y * np.cos(angle)) / length)
    from_outline = np.abs(np.hypot(along, across) - 1) * ellipse.short
    return strength * (0.12 + 0.88 * head_on**2) * soft(from_outline - 0.012, 300)


def _shadows(depth: np.ndarray, angle: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Factor on the echoes, low behind up to two obstacles in the beam."""
    passed = np.ones(depth.shape)
    for _ in range(int(rng.integers(0, 3))):
        beam = np.abs(angle - rng.uniform(-0.5, 0.5)) - rng.uniform(0.02, 0.06)
        passed *= 1 - 0.8 * soft(beam, 80) * (depth > PROBE + rng.uniform(0.05, 0.5))
    return passed


def _display(
    echo: np.ndarray,
    depth: np.ndarray,
    fan: np.ndarray,
    centre: UltrasoundCentre,
    scale: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The device's image: speckle, attenuation, electronic noise, logarithm of the amplitude; black outside the fan."""
    grain = [size * scale for size in centre.speckle]
    waves = [gaussian_filter(rng.standard_normal(echo.shape), grain, mode="wrap") for _ in range(2)]
    speckle = np.hypot(*(wave / wave.std() for wave in waves)) / np.sqrt(2)
    decibel = 20 * np.log10(echo * speckle + 1e-4) - centre.attenuation * (depth - PROBE)
    decibel = 10 * np.log10(10 ** (decibel / 10) + 10 ** (-6.0) * rng.exponential(1.0, echo.shape))
    shown = 1 + (decibel + centre.gain + rng.uniform(-3, 3)) / centre.dynamic_range
    return np.where(fan, np.clip(255 * shown, 1, 255), 0).astype(np.uint8)
