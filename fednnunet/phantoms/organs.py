"""Synthetic abdominal MRI with three organs, of which hospitals annotate some (``dataset=phantom_organs``).

What is assumed:

* Every image holds a liver, a spleen and kidneys: a large organ on one side, an elongated one on the other, and two
  round ones at the back with a bright cortex and a darker core. Place, size and intensity differ from case to case.
* Unlabelled structures look like them: a stomach as bright as a spleen, bowel with a bright wall as a kidney's cortex,
  a spine as bright as both, dark vessels within the liver, muscle; all of it textured.
* A hospital's scanner is a gain, a gamma, a smooth bias field and Rician noise. Hospitals image the same anatomy.
* What a hospital has annotated is whole: in its label maps an organ is drawn in all cases, or in none.
* Of two channels, T1 is the image that there is without channels, and T2 another contrast of the same anatomy, texture
  and scanner, with noise and bias field of its own (:data:`T2`). A liver is as dark in it as what lies between organs,
  and seen better in T1. A spleen is bright in it, and stomach, bowel and spine, as bright as a spleen in T1, are dark
  (as after a negative oral contrast medium), so that a spleen is seen better in T2. Kidneys are much the same in both.
  Channels are registered, and hospitals differ in scanners, not in what T1 or T2 means.

An image depends on the seed, its centre, its number and its channel, not on what is annotated, nor on which other
channels there are. Nothing here was chosen to make one strategy win over another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fednnunet.errors import ConfigError
from fednnunet.phantoms.drawing import Scanner, coordinates, scan, smooth_noise, soft
from fednnunet.phantoms.writer import PhantomCase, case_name, case_rng, with_tuples, write_dataset

VERSION = 1
"""Raised when the same parameters give other images."""
ORGANS = ("liver", "spleen", "kidney")
TRUTH_LABELS = {"background": 0} | {organ: value for value, organ in enumerate(ORGANS, 1)}
"""Label values in ``labelsAll``."""
ALL = "all"
CHANNELS = ("T1", "T2")
T2 = {"liver": -0.16, "spleen": 0.2, "kidney": 0.05, "stomach": -0.22, "bowel": -0.18, "spine": -0.25}
"""How much brighter than in T1 a structure is in T2, in intensities before the gain; all else is the same."""


@dataclass(frozen=True)
class OrganCentre:
    """A centre's cases and scanner.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        cases: number of cases.
        shape: voxels (Z, Y, X); each case differs from it by up to a slice.
        spacing: mm (Z, Y, X); each case differs from it by up to 3 % in plane.
        gain: factor on intensities.
        gamma: contrast curve; 1 is linear.
        bias: amplitude of the bias field, as a fraction.
        noise: standard deviation of the Rician noise, in intensities before the gain (tissue is about 0.6).
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
    external: bool = False


def make_organ_phantom(
    folder: Path,
    centres: Mapping[str, Mapping[str, Any]],
    annotated: Mapping[str, Sequence[str]] | Literal["all"],
    unannotated: Literal["unknown", "background"],
    seed: int,
    channels: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Write one dataset per centre below ``folder``; what exists with the same parameters stays.

    The label map of all organs of every case is in ``labelsAll``, which nothing that trains reads
    (:data:`TRUTH_LABELS`).

    Args:
        folder: folder of the raw datasets.
        centres: centre name to the fields of :class:`OrganCentre`.
        annotated: centre name to the organs that it annotates, whose values count from 1 in that order; a centre that
            is not named annotates all, as does every centre with ``all``.
        unannotated: ``unknown``: a ``dataset.json`` names the organs that its centre annotates. ``background``: it
            names all, though those that the centre does not annotate are nowhere drawn: what goes wrong where somebody
            merges such datasets without a thought.
        seed: random seed of all images.
        channels: centre name to its channels, of :data:`CHANNELS`, in the order of its files; a centre that is not
            named has both. None: every centre has one channel, ``MRI``.

    Returns:
        The datasets' folders.

    Raises:
        ConfigError: ``annotated``, ``unannotated`` or ``channels`` cannot be.
        DataError: a folder of that name exists and was not made here; it is left alone.
    """
    drawn: dict[str, tuple[str, ...]] = dict.fromkeys(centres, ORGANS)
    if annotated != ALL:
        drawn |= _read_lists("annotated", annotated, list(centres), ORGANS, f"be {ALL}, or list organs")
    acquired: dict[str, tuple[str, ...]] = dict.fromkeys(centres, CHANNELS)
    if channels is not None:
        acquired |= _read_lists("channels", channels, list(centres), CHANNELS, "be null, or list channels")
    if unannotated not in ("unknown", "background"):
        raise ConfigError(f"dataset.generator.unannotated={unannotated}: must be unknown or background")
    made = []
    for name, fields in centres.items():
        centre = OrganCentre(**with_tuples(fields))
        named = ORGANS if unannotated == "background" else drawn[name]
        labels = {"background": 0} | {organ: value for value, organ in enumerate(named, 1)}
        values = np.zeros(len(ORGANS) + 1, dtype=np.uint8)
        for organ in drawn[name]:
            values[TRUTH_LABELS[organ]] = labels[organ]
        parameters = {"version": VERSION, "seed": seed, "centre": name, "labels": labels, "annotated": drawn[name]}
        if channels is not None:
            parameters["channels"] = acquired[name]
        target = Path(folder) / centre.dataset
        write_dataset(
            target,
            name,
            _cases(name, centre, values, seed, CHANNELS[:1] if channels is None else acquired[name]),
            note=json.dumps({**parameters, **asdict(centre)}, indent=1),
            channels=["MRI"] if channels is None else acquired[name],
            labels=labels,
            external=centre.external,
        )
        made.append(target)
    return made


def _read_lists(
    key: str, given: Any, centres: Sequence[str], known: Sequence[str], form: str
) -> dict[str, tuple[str, ...]]:
    """Centre to its list, of the centres that are named, each of some of ``known``."""
    key = f"dataset.generator.{key}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key}={given}: must {form} by centre: {{{centres[0]}: [{known[0]}]}}")
    for name, listed in given.items():
        if name not in centres:
            raise ConfigError(f"{key}.{name}: there is no such centre, only {', '.join(centres)}")
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
            raise ConfigError(f"{key}.{name}={listed}: must be a list of one or more of {', '.join(known)}")
        if any(one not in known for one in listed) or len(set(listed)) < len(listed):
            raise ConfigError(f"{key}.{name}={list(listed)}: must be some of {', '.join(known)}, each once")
    return {name: tuple(listed) for name, listed in given.items()}


def _cases(
    name: str, centre: OrganCentre, values: np.ndarray, seed: int, channels: Sequence[str]
) -> Iterator[PhantomCase]:
    for number in range(centre.cases):
        images, truth, spacing = make_case(centre, case_rng(seed, name, number))
        image, *others = (images[channel] for channel in channels)
        yield PhantomCase(case_name(name, number), image, values[truth], spacing, truth=truth, others=others)


def make_case(
    centre: OrganCentre, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[float, float, float]]:
    """Image (Z, Y, X) in int16 of each of :data:`CHANNELS`, label map of all organs, and spacing in mm.

    The label map is in uint8 (:data:`TRUTH_LABELS`).
    """
    shape = (centre.shape[0] + int(rng.integers(-1, 2)), *centre.shape[1:])
    scale = rng.uniform(0.97, 1.03)
    spacing = (centre.spacing[0], centre.spacing[1] * scale, centre.spacing[2] * scale)
    extent = np.array([size * step / 2 for size, step in zip(shape, spacing, strict=True)])
    extent *= rng.uniform(0.92, 1.0)
    drawing = _Drawing(shape, spacing, extent, rng)
    drawing.body()
    for organ in rng.permutation(["stomach", "bowel", "bowel", "bowel", "spine"]):
        drawing.distractor(str(organ))
    for organ in ORGANS:
        drawing.organ(organ)
    scanner = Scanner(centre.gain, centre.gamma, centre.bias, centre.noise)
    tissues = {"T1": drawing.tissue, "T2": drawing.tissue + drawing.t2}  # T1 first: it is the image of one channel
    images = {name: scan(tissue * drawing.inside, scanner, spacing, rng) for name, tissue in tissues.items()}
    return images, drawing.truth, spacing


class _Drawing:
    """Tissue, label map and outline of one case, drawn structure by structure; later ones cover earlier ones.

    ``t2`` is how much brighter than ``tissue`` it is in T2.

    Args:
        shape: voxels (Z, Y, X).
        spacing: mm (Z, Y, X).
        extent: half of the body's size, mm (Z, Y, X).
        rng: random numbers.
    """

    def __init__(
        self, shape: Sequence[int], spacing: Sequence[float], extent: np.ndarray, rng: np.random.Generator
    ) -> None:
        self.shape, self.spacing, self.extent, self.rng = tuple(shape), spacing, extent, rng
        self.grid = coordinates(shape, spacing)
        self.shift = rng.uniform(-0.05, 0.05, 3)
        self.truth = np.zeros(self.shape, dtype=np.uint8)
        self.tissue = np.zeros(self.shape)
        self.t2 = np.zeros(self.shape)
        self.inside = np.zeros(self.shape)

    def body(self) -> None:
        """Fat, muscle and what lies between the organs."""
        radius = self._distance((0.0, 0.0, 0.0), (3.0, 0.8, 0.92), 0.03)
        self.inside = soft(radius - 1, 30)
        fat = soft(0.86 - radius, 40)
        between = 0.42 + 0.06 * self._noise(9.0) + 0.03 * self._noise(3.0)
        self.tissue = between * (1 - fat) + 0.78 * fat

    def organ(self, organ: str) -> None:
        """One of :data:`ORGANS`: what it adds to the tissue, and where it is."""
        rng = self.rng
        if organ == "liver":
            distance = self._distance((0, -0.12, -0.42), (1.6, 0.42, 0.36), 0.12)
            vessels = 0.16 * (self._noise(4.0) > 1.5)
            self._draw(organ, distance, 0.6 + rng.uniform(-0.05, 0.05) + 0.04 * self._noise(4.0) - vessels)
        elif organ == "spleen":
            distance = self._distance((0, 0.12, 0.6), (1.2, 0.33, 0.15), 0.1)
            self._draw(organ, distance, 0.72 + rng.uniform(-0.05, 0.05) + 0.04 * self._noise(2.5))
        else:
            for side in (-0.3, 0.32):
                distance = self._distance((0, 0.46, side), (1.1, 0.17, 0.13), 0.08)
                core = 0.22 * soft(distance - 0.55, 12)
                self._draw(organ, distance, 0.82 + rng.uniform(-0.05, 0.05) - core + 0.03 * self._noise(2.5))

    def distractor(self, name: str) -> None:
        """Something that is no organ of interest but looks like one."""
        rng = self.rng
        if name == "stomach":
            distance = self._distance((0, -0.35, 0.3), (1.0, 0.2, 0.26), 0.12)
            self._draw(name, distance, rng.uniform(0.6, 0.76) + 0.04 * self._noise(2.5))
        elif name == "spine":
            distance = self._distance((0, 0.58, 0.0), (3.0, 0.13, 0.12), 0.06)
            self._draw(name, distance, 0.7 + rng.uniform(-0.06, 0.06) + 0.05 * self._noise(2.0))
        else:
            place = (rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.3), rng.uniform(-0.1, 0.35))
            size = rng.uniform(0.09, 0.15)
            distance = self._distance(place, (0.7, size, size), 0.1)
            wall = 0.25 * soft(0.6 - distance, 12)
            self._draw(name, distance, 0.55 + wall + 0.03 * self._noise(2.5))

    def _distance(
        self, place: tuple[float, float, float], size: tuple[float, float, float], roughness: float
    ) -> np.ndarray:
        """Distance from an irregular ellipsoid's centre, in its radii; place and size are parts of the body's."""
        at = (np.array(place) + self.shift + self.rng.uniform(-0.05, 0.05, 3)) * self.extent
        radii = np.array(size) * self.rng.uniform(0.85, 1.15, 3) * self.extent
        squares = (((axis - p) / r) ** 2 for axis, p, r in zip(self.grid, at, radii, strict=True))
        smooth = smooth_noise(self.shape, self.spacing, float(radii[1:].min()) * 0.6, self.rng)
        return np.asarray(np.sqrt(sum(squares)) * (1 + roughness * smooth))

    def _noise(self, scale_mm: float) -> np.ndarray:
        return smooth_noise(self.shape, self.spacing, scale_mm, self.rng)

    def _draw(self, name: str, distance: np.ndarray, signal: np.ndarray) -> None:
        mask = (distance < 1) & (self.inside > 0.5) & (self.truth == 0)
        self.tissue = np.where(mask, signal, self.tissue)
        self.t2[mask] = T2[name]
        if name in ORGANS:
            self.truth[mask] = TRUTH_LABELS[name]
