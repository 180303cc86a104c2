"""What phantoms of the paper's collections have in common: centres at full size, and how far they are scaled down.

The geometry of a study is drawn before, and without, its image: plans can be made of full-size studies that nobody
has drawn. Scaling keeps the field of view: fewer pixels, each larger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fednnunet.datasets.raw import MIN_TRAINING_CASES
from fednnunet.errors import ConfigError
from fednnunet.phantoms.drawing import Scanner
from fednnunet.phantoms.writer import PhantomCase, case_rng, with_tuples, write_dataset

OTHER_PROTOCOL = 0.25
"""Part of the studies whose field of view and matrix differ from what is usual at the centre."""


@dataclass(frozen=True)
class Grid:
    """Geometry of a study: voxels and mm, both (Z, Y, X)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Scale:
    """How far full size is scaled down, and how many of the studies are made; 1 is all.

    Attributes:
        scale: factor on the pixels along a side.
        slice_scale: factor on the number of slices.
        case_fraction: part of every centre's studies, at least five.

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
        """Pixels along a side that has so many at full size."""
        return max(1, round(full * self.scale))

    def apply(self, full: Grid) -> Grid:
        """The same field of view in fewer voxels."""
        (slices, y, x), (thickness, y_mm, x_mm) = full.shape, full.spacing
        shape = (max(1, round(slices * self.slice_scale)), self.pixels(y), self.pixels(x))
        return Grid(shape, (thickness * slices / shape[0], y_mm * y / shape[1], x_mm * x / shape[2]))

    def studies(self, all_studies: int, part: float = 1.0) -> int:
        """How many of a centre's studies are made; ``part`` is the centre's own."""
        return min(all_studies, max(MIN_TRAINING_CASES, round(all_studies * self.case_fraction * part)))


@dataclass(frozen=True, kw_only=True)
class Centre:
    """A centre of a collection.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        studies: at full size.
        external: serves for testing only.
        part: part of what the scale makes of its studies: every node's model is scored on each of an external centre.
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
        slices: usual, smallest and largest number.
        slice_thickness: usual, smallest and largest, mm.
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
    """Full-size geometry of a study: medians are the centre's usual values; thin slices come in larger numbers."""
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
"""Factors of a 3 T scanner against one of 1.5 T: more signal, and a less even field."""


def draw_scanner(centre: MriCentre, scanners: Mapping[str, Scanner], rng: np.random.Generator) -> Scanner:
    """The scanner of a study, by the centre's vendors and field strengths."""
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
    """Centre name to what the configuration says of it."""
    return {name: kind(**with_tuples(fields)) for name, fields in centres.items()}


def write_collection(
    folder: Path,
    centres: Mapping[str, C],
    draw: Callable[[str, C, int, np.random.Generator], list[PhantomCase]],
    *,
    seed: int,
    scale: Scale,
    note: Mapping[str, Any],
    channel: str,
    labels: Mapping[str, int],
    file_ending: str = ".nii.gz",
) -> list[Path]:
    """Write one dataset per centre below ``folder``; what is there with the same parameters stays.

    Args:
        folder: of the raw datasets.
        centres: centre name to centre.
        draw: the cases of a study, of centre's name, centre, the study's number and its random numbers. A study
            depends on these and the scale alone.
        seed: of everything.
        scale: how far full size is scaled down.
        note: what else the images depend on, beside centre, seed and scale.
        channel: name of the one channel.
        labels: name to value.
        file_ending: of images and labels.

    Returns:
        The datasets' folders.

    Raises:
        DataError: a folder of that name is there which was not made here; it is left alone.
    """

    def cases(name: str, centre: C) -> Iterator[PhantomCase]:
        for number in range(scale.studies(centre.studies, centre.part)):
            yield from draw(name, centre, number, case_rng(seed, name, number))

    for name, centre in centres.items():
        parameters = {**note, "seed": seed, **asdict(scale), "centre": name, **asdict(centre)}
        write_dataset(
            Path(folder) / centre.dataset,
            name,
            cases(name, centre),
            note=json.dumps(parameters, indent=1),
            channel=channel,
            labels=labels,
            external=centre.external,
            file_ending=file_ending,
        )
    return [Path(folder) / centre.dataset for centre in centres.values()]
