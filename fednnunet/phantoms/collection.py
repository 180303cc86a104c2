"""What the phantoms of the paper's collections share: centres at full size, and how they are scaled down.

The geometry of a study is drawn before its image and without it, so plans can be made for full-size studies whose
images were never drawn. Scaling keeps the field of view: fewer pixels, each larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from fednnunet.datasets.splits import FOLDS
from fednnunet.errors import ConfigError
from fednnunet.phantoms.drawing import Scanner
from fednnunet.phantoms.writer import with_tuples

OTHER_PROTOCOL = 0.25
"""Part of the studies whose field of view and matrix differ from the centre's usual ones."""


@dataclass(frozen=True)
class Grid:
    """Geometry of a study: voxels and mm, both (Z, Y, X)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Scale:
    """Factors on the size of images and on the number of studies; 1 is full size, or all studies.

    Attributes:
        scale: factor on the pixels along a side.
        slice_scale: factor on the number of slices.
        case_fraction: part of every centre's studies to make, at least five.

    Raises:
        ConfigError: a value outside 0 to 1.
    """

    scale: float
    slice_scale: float = 1.0
    case_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value <= 1:
                raise ConfigError(f"dataset.generator.{name}={value}: must be above 0 and at most 1, full size")

    def pixels(self, full: int) -> int:
        """Number of pixels along a side with ``full`` pixels at full size."""
        return max(1, round(full * self.scale))

    def apply(self, full: Grid) -> Grid:
        """The same field of view in fewer voxels."""
        (slices, y, x), (thickness, y_mm, x_mm) = full.shape, full.spacing
        shape = (max(1, round(slices * self.slice_scale)), self.pixels(y), self.pixels(x))
        return Grid(shape, (thickness * slices / shape[0], y_mm * y / shape[1], x_mm * x / shape[2]))

    def studies(self, all_studies: int, part: float = 1.0) -> int:
        """Number of a centre's studies to make; ``part`` is the centre's own factor."""
        return min(all_studies, max(FOLDS, round(all_studies * self.case_fraction * part)))


@dataclass(frozen=True, kw_only=True)
class Centre:
    """A centre of a collection.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        studies: number of studies at full size.
        external: whether its studies are for testing only.
        part: further factor on the number of studies; every node's model is scored on each of an external centre.
    """

    dataset: str
    studies: int
    external: bool = False
    part: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MriCentre(Centre):
    """A centre with MRI volumes.

    Attributes:
        pixels: usual matrix (Y, X).
        pixel_spacing: usual size of a pixel, mm.
        slices: usual, smallest and largest number of slices.
        slice_thickness: usual, smallest and largest thickness, mm.
        vendors: vendor to its part of the studies.
        field_3t: part of the studies at 3 T; the rest is at 1.5 T.
    """

    pixels: tuple[int, int]
    pixel_spacing: float
    slices: tuple[int, int, int]
    slice_thickness: tuple[float, float, float]
    vendors: Mapping[str, float]
    field_3t: float


def draw_volume(centre: MriCentre, rng: np.random.Generator) -> Grid:
    """Full-size geometry of a study; medians are the centre's usual values, and thin slices are more numerous."""
    unusual = rng.uniform(-1, 1) ** 3  # most studies are near 0, the centre's protocol
    thickness = _between(centre.slice_thickness, unusual)
    slices = round(_between(centre.slices, -unusual))
    other, matrix, field = rng.random() < OTHER_PROTOCOL, rng.uniform(0.8, 1.2), rng.uniform(0.9, 1.1)
    if not other:
        matrix = field = 1.0
    y, x = (round(pixels * matrix) for pixels in centre.pixels)
    pixel = centre.pixel_spacing * field / matrix
    return Grid((slices, y, x), (thickness, pixel, pixel))


def _between(usual_least_most: tuple[float, float, float], place: float) -> float:
    """The usual value at 0, the least at -1, the most at 1."""
    usual, least, most = usual_least_most
    return usual + (place * (most - usual) if place > 0 else -place * (least - usual))


FIELD_3T = {"noise": 0.6, "bias": 1.6}
"""Factors of a 3 T scanner relative to 1.5 T: less noise, and a less even field."""


def draw_scanner(centre: MriCentre, scanners: Mapping[str, Scanner], rng: np.random.Generator) -> Scanner:
    """The scanner of a study, drawn from the centre's vendors and field strengths."""
    weights = np.array(list(centre.vendors.values()))
    scanner = scanners[str(rng.choice(list(centre.vendors), p=weights / weights.sum()))]
    if rng.random() >= centre.field_3t:
        return scanner
    return Scanner(scanner.gain, scanner.gamma, scanner.bias * FIELD_3T["bias"], scanner.noise * FIELD_3T["noise"])


def read_scanners(vendors: Mapping[str, Mapping[str, float]], centres: Mapping[str, MriCentre]) -> dict[str, Scanner]:
    """Vendor to scanner.

    Raises:
        ConfigError: a centre has scanners of a vendor that is not described.
    """
    for name, centre in centres.items():
        unknown = sorted(set(centre.vendors) - set(vendors))
        if unknown:
            raise ConfigError(
                f"dataset.generator.centres.{name}.vendors: {unknown[0]} is none of dataset.generator.vendors "
                f"({', '.join(vendors)})"
            )
    return {vendor: Scanner(**fields) for vendor, fields in vendors.items()}


C = TypeVar("C", bound=Centre)


def read_centres(centres: Mapping[str, Mapping[str, Any]], kind: type[C]) -> dict[str, C]:
    """Centre name to its description."""
    return {name: kind(**with_tuples(fields)) for name, fields in centres.items()}
