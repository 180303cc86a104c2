"""Synthetic breast MRI of any number of hospitals (``dataset=phantom_many``): how federations behave as they grow.

What is assumed:

* Hospitals differ in number of cases, matrix, slices, spacing, gain, contrast, bias field, noise, size of lesions and
  how often a lesion has which appearance. Images are those of :mod:`fednnunet.phantoms.breast_small`, smaller.
* Numbers of cases are log-normal, cut off at both ends: most hospitals are small, few are large, none has fewer than
  nnU-Net's folds. With ``pooled_cases`` the same draws say how a fixed number of training cases is divided.
* All other properties are drawn independently of each other and of the number of cases: whole numbers and amplitudes
  evenly between two bounds, factors (pixel size, gain, gamma, noise) evenly on a logarithmic scale, appearances from
  a Dirichlet distribution. The field of view is the same everywhere, so smaller pixels are more pixels.
* A hospital depends on the seed and its number alone: the first ten of a hundred are the same as ten alone, unless
  ``pooled_cases`` divides among more, and then they keep everything but their number of cases.

Nothing here was chosen to make one strategy win over another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from fednnunet.config.groups import Config
from fednnunet.config.numbered_centres import numbered_centres
from fednnunet.datasets.splits import FOLDS
from fednnunet.errors import ConfigError, first_problem
from fednnunet.phantoms.breast_small import APPEARANCES, PhantomCentre, make_small_phantom
from fednnunet.phantoms.writer import case_rng

N = TypeVar("N", int, float)


def _smaller_first(bounds: tuple[N, N]) -> tuple[N, N]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{list(bounds)}: the smaller number must be first")
    return bounds


Bounds = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_smaller_first)]
"""Smallest and largest value."""


class HospitalDistribution(Config):
    """What hospitals are drawn from.

    Attributes:
        median_cases: median of the log-normal number of cases.
        log_cases_std: standard deviation of its natural logarithm; 0 makes all hospitals alike.
        most_cases: larger numbers of cases become this one.
        field_of_view: mm along both sides of a slice.
        pixel_spacing: mm.
        slices: number of slices.
        slice_spacing: mm.
        gain: factor on intensities.
        gamma: contrast curve; 1 is linear.
        bias: amplitude of the bias field, as a fraction.
        noise: standard deviation of the Rician noise, in intensities before the gain (tissue is about 0.6).
        smallest_lesion: smallest radius of a hospital's lesions, mm.
        largest_lesion: largest radius of a hospital's lesions, mm.
        appearance_concentration: parameter of the symmetric Dirichlet distribution that the weights of bright, dark,
            rim and textured lesions are drawn from: the larger, the more alike are hospitals.
    """

    median_cases: PositiveFloat
    log_cases_std: NonNegativeFloat
    most_cases: PositiveFloat
    field_of_view: PositiveFloat
    pixel_spacing: Bounds
    slices: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_smaller_first)]
    slice_spacing: Bounds
    gain: Bounds
    gamma: Bounds
    bias: Bounds
    noise: Bounds
    smallest_lesion: Bounds
    largest_lesion: Bounds
    appearance_concentration: PositiveFloat


def make_many_phantom(
    folder: Path,
    centres: int,
    external_fraction: float,
    seed: int,
    pooled_cases: int | None,
    hospitals: Mapping[str, Any],
) -> list[Path]:
    """Write one dataset per hospital below ``folder``; what exists with the same parameters stays.

    Args:
        folder: folder of the raw datasets.
        centres: number of hospitals, external ones included.
        external_fraction: fraction of them that is external: with 0.1 every tenth.
        seed: random seed of hospitals and images.
        pooled_cases: number of training cases of all hospitals together; None: as many as the hospitals draw.
        hospitals: fields of :class:`HospitalDistribution`.

    Returns:
        The datasets' folders.

    Raises:
        ConfigError: a number of hospitals, a fraction or a distribution that cannot be, or too few cases for so many.
        DataError: a folder of that name exists and was not made here; it is left alone.
    """
    try:
        distribution = HospitalDistribution.model_validate(hospitals)
    except ValidationError as error:
        raise ConfigError(f"dataset.generator.hospitals: {first_problem(error, 'hospitals')}") from None
    drawn = draw_hospitals(centres, external_fraction, seed, pooled_cases, distribution)
    return make_small_phantom(folder, {name: asdict(hospital) for name, hospital in drawn.items()}, seed)


def draw_hospitals(
    centres: int,
    external_fraction: float,
    seed: int,
    pooled_cases: int | None,
    distribution: HospitalDistribution,
) -> dict[str, PhantomCentre]:
    """Name to what a hospital's images are drawn from, without drawing them; arguments as above.

    Raises:
        ConfigError: a number of hospitals or a fraction that cannot be, or too few cases for so many hospitals.
    """
    numbered = numbered_centres(centres, external_fraction)
    sizes = {centre["name"]: _draw_size(centre["name"], seed, distribution) for centre in numbered}
    cases = {name: max(FOLDS, round(size)) for name, size in sizes.items()}
    if pooled_cases is not None:
        cases |= divide(pooled_cases, {c["name"]: sizes[c["name"]] for c in numbered if not c["external"]})
    return {
        centre["name"]: _draw_hospital(
            centre["name"], centre["dataset"], centre["external"], cases[centre["name"]], seed, distribution
        )
        for centre in numbered
    }


def divide(total: int, sizes: Mapping[str, float]) -> dict[str, int]:
    """Divide ``total`` cases in proportion to ``sizes``, but to none fewer than there are folds.

    What is left over by rounding down goes to the largest remainders.

    Raises:
        ConfigError: ``total`` is too small.
    """
    least = FOLDS * len(sizes)
    if type(total) is not int or total < least:
        raise ConfigError(
            f"dataset.generator.pooled_cases={total}: must be a whole number of at least {least}, {FOLDS} for each of "
            f"{len(sizes)} training hospitals; or null"
        )
    weights = np.array(list(sizes.values()))
    shares, small = np.zeros(len(weights)), np.ones(len(weights), dtype=bool)
    while np.any(small):
        raised = shares == FOLDS
        shares = np.where(raised, FOLDS, weights * (total - FOLDS * raised.sum()) / weights[~raised].sum())
        small = shares < FOLDS - 1e-9
        shares[small] = FOLDS
    cases = np.floor(shares + 1e-9).astype(int)
    most_left = np.argsort(cases - shares, kind="stable")
    cases[most_left[: total - cases.sum()]] += 1
    return {name: int(number) for name, number in zip(sizes, cases, strict=True)}


def _draw_size(name: str, seed: int, distribution: HospitalDistribution) -> float:
    normal = case_rng(seed, f"size of {name}", 0).standard_normal()
    return min(distribution.most_cases, distribution.median_cases * math.exp(distribution.log_cases_std * normal))


def _draw_hospital(
    name: str, dataset: str, external: bool, cases: int, seed: int, distribution: HospitalDistribution
) -> PhantomCentre:
    rng = case_rng(seed, f"scanner of {name}", 0)
    pixel = _log_uniform(distribution.pixel_spacing, rng)
    pixels = max(1, round(distribution.field_of_view / pixel))
    slices = int(rng.integers(*distribution.slices, endpoint=True))
    slice_spacing = rng.uniform(*distribution.slice_spacing)
    weights = rng.dirichlet([distribution.appearance_concentration] * len(APPEARANCES))
    return PhantomCentre(
        dataset=dataset,
        cases=cases,
        shape=(slices, pixels, pixels),
        spacing=(slice_spacing, pixel, pixel),
        gain=_log_uniform(distribution.gain, rng),
        gamma=_log_uniform(distribution.gamma, rng),
        bias=rng.uniform(*distribution.bias),
        noise=_log_uniform(distribution.noise, rng),
        lesion_radius=(rng.uniform(*distribution.smallest_lesion), rng.uniform(*distribution.largest_lesion)),
        appearances=(float(weights[0]), float(weights[1]), float(weights[2]), float(weights[3])),
        external=external,
    )


def _log_uniform(bounds: Bounds, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))
