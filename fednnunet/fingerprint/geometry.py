"""Sizes of a federation's cases from counts alone (``fingerprint.geometry=sums``).

nnU-Net's planners read of a case list: per axis the medians of spacing, of shape and of their product, the 10th
percentile of the coarsest axis's spacing, and whether the median relative size is below 0.75 (``ExperimentPlanner``).
Such order statistics follow from sums: how many cases lie below a point? The server bisects a public grid of points,
and makes up a few cases with the statistics that it finds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednnunet.exchange.quantities import AXES, Counts, Quantity
from fednnunet.fingerprint.made_up_cases import MASK_BELOW
from fednnunet.privacy.accounting import noise_for

POINTS_PER_DOUBLING = 2048
"""Points of the grid between a value and its double: neighbours are 0.034 % apart."""
Answers = dict[Quantity, dict[int, int]]
"""Quantity to grid point to the number of cases below it."""
EXACT_QUESTIONS = 400
"""Most questions about a dataset in a run; a search asks some 150."""
NOISY_MEDIAN = {"spacing": 12, "shape": 8, "extent": 12}
"""Questions for a median where counts hold noise: all questions share one budget."""
NOISY_TENTH = 8
"""Those for the 10th percentile of a spacing."""
NOISY_QUESTIONS = len(AXES) * sum(NOISY_MEDIAN.values()) + NOISY_TENTH + 1
DELTA = 1e-5


@dataclass(frozen=True)
class Grid:
    """Public points that may be asked about.

    Attributes:
        points: rising.
        mass: what part of all values is expected below each point, up to a constant: where the search begins.
        whole: values are whole numbers.
    """

    points: np.ndarray
    mass: np.ndarray
    whole: bool = False

    @classmethod
    def about(cls, centre: float, spread: float, doublings: range, whole: bool = False) -> Grid:
        """A grid in proportion, or of whole numbers.

        Args:
            centre: usual value.
            spread: doublings within which half of all values are expected, to either side (a Cauchy distribution).
            doublings: of 1, from the first to the last point.
            whole: values are whole numbers.
        """
        exponents = np.arange(doublings.start * POINTS_PER_DOUBLING, doublings.stop * POINTS_PER_DOUBLING + 1)
        points = np.exp2(exponents / POINTS_PER_DOUBLING)
        points = np.unique(np.ceil(points)) if whole else points
        return cls(points, np.arctan((np.log2(points) - np.log2(centre)) / spread), whole)

    def between(self, low: int, high: int) -> int:
        """The point that halves what is expected between two others; -1 and the number of points are the ends."""
        first = self.mass[low] if low >= 0 else -np.pi / 2
        last = self.mass[high] if high < len(self.mass) else np.pi / 2
        return int(np.clip(np.searchsorted(self.mass, (first + last) / 2), low + 1, high - 1))


LENGTH = Grid.about(256, 1, range(-20, 30))
SPACING = Grid.about(1, 2, range(-20, 30))
SHAPE = Grid.about(256, 1, range(21), whole=True)
GRIDS: dict[Quantity, Grid] = {
    **{Quantity.of("spacing", axis): SPACING for axis in range(len(AXES))},
    **{Quantity.of("shape", axis): SHAPE for axis in range(len(AXES))},
    **{Quantity.of("extent", axis): LENGTH for axis in range(len(AXES))},
    Quantity.RELATIVE_SIZE: Grid(np.array([MASK_BELOW]), np.zeros(1)),
}
"""Quantity (axes Z, Y, X) to its grid: mm, voxels, mm."""


# at a node ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseSizes:
    """Sizes of a node's cases.

    Attributes:
        spacings: mm, (Z, Y, X), a row per case.
        shapes: voxels after cropping, (Z, Y, X), a row per case.
        relative_sizes: size after cropping, as a fraction of that before.
    """

    spacings: np.ndarray
    shapes: np.ndarray
    relative_sizes: np.ndarray

    @classmethod
    def of(cls, fingerprint: Mapping[str, Any]) -> CaseSizes:
        """Those that a fingerprint lists."""
        spacings, shapes = (np.array(fingerprint[name], float) for name in ("spacings", "shapes_after_crop"))
        return cls(spacings, shapes, np.array(fingerprint["relative_sizes"], float))

    def values(self, quantity: Quantity) -> np.ndarray:
        """A value per case."""
        if quantity is Quantity.RELATIVE_SIZE:
            return self.relative_sizes
        name, axis = quantity.value.split("_")
        of_axes = {"spacing": self.spacings, "shape": self.shapes, "extent": self.spacings * self.shapes}
        return of_axes[name][:, AXES.index(axis)]


def count_below(sizes: CaseSizes, questions: Mapping[Quantity, Sequence[int]]) -> Counts:
    """How many cases lie below each point.

    Raises:
        ValueError: a point that the grid does not have.
    """
    counts: Counts = {}
    for quantity, numbers in questions.items():
        points = GRIDS[quantity].points
        if not all(0 <= number < len(points) for number in numbers):
            raise ValueError(f"{quantity} has no grid point {max(numbers, key=abs)}")
        values = np.sort(sizes.values(quantity))
        counts[quantity] = np.searchsorted(values, points[list(numbers)], side="left").tolist()
    return counts


def noise_of(epsilon: float) -> float:
    """Standard deviation of a count's noise, for :data:`NOISY_QUESTIONS` of which a case changes each by at most 1."""
    return noise_for(epsilon, 1, NOISY_QUESTIONS, DELTA)


def share_of(nodes: int, colluding: int) -> float:
    """Part of the noise that a node adds where only sums are seen: that of the honest nodes is all of it, in variance.

    >>> share_of(nodes=5, colluding=1)
    0.5
    """
    return 1 / math.sqrt(max(1, nodes - colluding))


# at the server ---------------------------------------------------------------------------------------


def check_counts(
    counts: Mapping[Quantity, Sequence[int]],
    questions: Mapping[Quantity, Sequence[int]],
    earlier: Answers,
    cases: int,
    noise: float = 0.0,
) -> Answers:
    """The counts of one node, by grid point.

    Args:
        counts: what the node sent.
        questions: what it was asked.
        earlier: its answers to earlier questions.
        cases: its number of cases.
        noise: standard deviation of the noise on them.

    Raises:
        ValueError: not the quantities or numbers asked for, or counts that no cases have.
    """
    sizes = {quantity: len(numbers) for quantity, numbers in questions.items()}
    if {quantity: len(found) for quantity, found in counts.items()} != sizes:
        raise ValueError("counts of other points than were asked for")
    answers: Answers = {q: dict(zip(questions[q], found, strict=True)) for q, found in counts.items()}
    slack = 10 * noise
    for quantity, found in answers.items():
        if any(not -slack <= count <= cases + slack for count in found.values()):
            raise ValueError(f"{quantity} of fewer than none or more than all of {cases} cases")
        in_order = [count for _, count in sorted({**earlier.get(quantity, {}), **found}.items())]
        if not noise and in_order != sorted(in_order):
            raise ValueError(f"counts of {quantity} that fall where they have to rise")
    return answers
