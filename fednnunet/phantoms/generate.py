"""Make the phantom of one of the paper's collections: one dataset per centre."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet.errors import ConfigError
from fednnunet.phantoms import breast, cardiac, ultrasound
from fednnunet.phantoms.collection import Centre, MriCentre, Scale, read_centres, read_scanners
from fednnunet.phantoms.drawing import Scanner
from fednnunet.phantoms.writer import PhantomCase, case_name, case_rng, write_dataset

DrawStudy = Callable[[str, Any, Scale, Mapping[str, Scanner], np.random.Generator], list[PhantomCase]]
"""Draws the cases of a study: name of the study, centre, scale, vendor to scanner, random numbers."""


@dataclass(frozen=True)
class Collection:
    """How the studies of a collection are drawn and written.

    Attributes:
        draw: draws one study, which depends on nothing but its arguments.
        centre: class that describes a centre.
        version: raised when the same parameters give other images.
        labels: label name to value.
        channel: name of the only channel.
        file_ending: ending of images and label maps.
    """

    draw: DrawStudy
    centre: type[Centre]
    version: int
    labels: Mapping[str, int]
    channel: str = "MRI"
    file_ending: str = ".nii.gz"


COLLECTIONS = {
    "mamamia": Collection(breast.draw_study, breast.BreastCentre, breast.VERSION, breast.LABELS),
    "mnms": Collection(cardiac.draw_study, MriCentre, cardiac.VERSION, cardiac.LABELS),
    "aimix": Collection(
        ultrasound.draw_study, ultrasound.UltrasoundCentre, ultrasound.VERSION, ultrasound.LABELS, "US", ".png"
    ),
}


def make_phantom(
    folder: Path,
    collection: str,
    centres: Mapping[str, Mapping[str, Any]],
    seed: int,
    scale: float,
    case_fraction: float,
    slice_scale: float = 1.0,
    vendors: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Path]:
    """Write one dataset per centre below ``folder``; what exists with the same parameters stays.

    Args:
        folder: folder of the raw datasets.
        collection: key of :data:`COLLECTIONS`.
        centres: centre name to the fields of the collection's class of centres.
        seed: random seed of all images.
        scale: factor on the pixels along a side; 1 is full size.
        case_fraction: part of every centre's studies to make, at least five.
        slice_scale: factor on the number of slices of volumes.
        vendors: vendor to the fields of :class:`fednnunet.phantoms.drawing.Scanner`, for MRI.

    Returns:
        The datasets' folders.

    Raises:
        ConfigError: an unknown collection, a scale or fraction outside 0 to 1, or a vendor that is not described.
        DataError: a folder of that name exists and was not made here; it is left alone.
    """
    if collection not in COLLECTIONS:
        raise ConfigError(f"dataset.generator.collection={collection}: must be one of {', '.join(COLLECTIONS)}")
    kind, scales = COLLECTIONS[collection], Scale(scale, slice_scale, case_fraction)
    known = read_centres(centres, kind.centre)
    scanners = read_scanners(vendors or {}, {name: c for name, c in known.items() if isinstance(c, MriCentre)})
    image_settings = {"version": kind.version} | ({} if vendors is None else {"vendors": vendors})
    for name, centre in known.items():
        parameters = {**image_settings, "seed": seed, **asdict(scales), "centre": name, **asdict(centre)}
        write_dataset(
            Path(folder) / centre.dataset,
            name,
            _draw_cases(kind, name, centre, scales, scanners, seed),
            note=json.dumps(parameters, indent=1),
            channels=[kind.channel],
            labels=kind.labels,
            external=centre.external,
            file_ending=kind.file_ending,
        )
    return [Path(folder) / centre.dataset for centre in known.values()]


def _draw_cases(
    kind: Collection, name: str, centre: Centre, scales: Scale, scanners: Mapping[str, Scanner], seed: int
) -> Iterator[PhantomCase]:
    for number in range(scales.studies(centre.studies, centre.part)):
        yield from kind.draw(case_name(name, number), centre, scales, scanners, case_rng(seed, name, number))
