"""Order statistics of all nodes' cases from sums of counts (:mod:`fednnunet.fingerprint.geometry`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.optimize import isotonic_regression

from fednnunet.exchange.quantities import AXES, Quantity, Questions
from fednnunet.fingerprint.geometry import GRIDS, NOISY_MEDIAN, NOISY_TENTH, Answers
from fednnunet.fingerprint.made_up_cases import AxisStatistics, Statistics


class GeometrySearch:
    """Bisection for all order statistics at once: a set of questions, their answers, and so on.

    Without noise it ends at neighbours on the grid, after about 15 sets; a median has two ranks where the number of
    cases is even. With noise there are as many questions as share the budget; counts are made to rise, and axes that
    the noise does not tell apart are taken as equal, as rows and columns of images mostly are.

    Args:
        cases: number of cases in all.
        noise: standard deviation of the noise on the sums.
    """

    def __init__(self, cases: int, noise: float = 0.0) -> None:
        self.cases, self.noise = cases, noise
        self.answers: Answers = {quantity: {} for quantity in GRIDS}

    def questions(self) -> Questions:
        """What to ask next; nothing where all is known."""
        questions = {quantity: self._questions_about(quantity) for quantity in GRIDS}
        return {quantity: numbers for quantity, numbers in questions.items() if numbers}

    def add(self, counts: Mapping[Quantity, Mapping[int, int]]) -> None:
        """Take in sums over all nodes."""
        for quantity, found in counts.items():
            self.answers[quantity].update(found)

    def statistics(self) -> Statistics:
        """What was found."""
        coarsest, lower, upper = self._coarsest(), *self._middle
        spacings, first_shapes, first_extents = (self._of_axes(name, lower) for name in ("spacing", "shape", "extent"))
        others, last_shapes, last_extents = (self._of_axes(name, upper) for name in ("spacing", "shape", "extent"))
        if self.noise:
            first_extents = last_extents = self._products(spacings, first_shapes, first_extents)
        axes = [
            AxisStatistics(
                spacing=(spacings[axis] + others[axis]) / 2,
                shapes=(round(first_shapes[axis]), round(last_shapes[axis])),
                extents=(first_extents[axis], last_extents[axis]),
            )
            for axis in range(len(AXES))
        ]
        if coarsest is not None:
            first, second, part = self._tenth
            below, above = (self._value(Quantity.of("spacing", coarsest), rank) for rank in (first, second))
            axes[coarsest] = replace(axes[coarsest], tenth=(1 - part) * below + part * above)
        (cropped,) = self.answers[Quantity.RELATIVE_SIZE].values()
        return Statistics(tuple(axes), cropped=cropped > self.cases / 2)

    # questions -----------------------------------------------------------------------------------------

    @property
    def _middle(self) -> tuple[float, float]:
        """Ranks, from 0, of the cases in the middle; with noise, the middle itself."""
        if self.noise:
            return (self.cases - 1) / 2, (self.cases - 1) / 2
        return (self.cases - 1) // 2, self.cases // 2

    @property
    def _tenth(self) -> tuple[float, float, float]:
        """Ranks on both sides of the 10th percentile (``numpy.percentile``), and the weight of the second."""
        rank = 0.1 * (self.cases - 1)
        if self.noise:
            return rank, rank, 0.0
        return int(rank), min(int(rank) + 1, self.cases - 1), rank - int(rank)

    def _questions_about(self, quantity: Quantity) -> list[int]:
        asked = len(self.answers[quantity])
        if quantity is Quantity.RELATIVE_SIZE:
            return [] if asked else [0]
        coarsest = self._coarsest()
        needs_tenth = coarsest is not None and quantity is Quantity.of("spacing", coarsest)
        tenth = list(self._tenth[:2]) if needs_tenth else []
        ranks = [*self._middle, *tenth]
        if self.noise:
            median = NOISY_MEDIAN[quantity.split("_")[0]]
            ranks = list(self._middle) if asked < median else tenth if asked < median + NOISY_TENTH else []
        brackets = {self._bracket(quantity, rank) for rank in ranks}
        return [GRIDS[quantity].between(low, high) for low, high in sorted(brackets) if high - low > 1]

    def _coarsest(self) -> int | None:
        """The axis whose median spacing is certainly above the others'; None where that is not known (yet)."""
        bounds = [self._bounds_of_median(Quantity.of("spacing", axis)) for axis in range(len(AXES))]
        for axis, (lowest, _) in enumerate(bounds):
            if all(lowest >= highest for other, (_, highest) in enumerate(bounds) if other != axis):
                return axis
        return None

    def _bounds_of_median(self, quantity: Quantity) -> tuple[float, float]:
        """Between which values the median lies, the mean of the two cases in the middle."""
        points = GRIDS[quantity].points

        def value(number: int) -> float:
            return 0.0 if number < 0 else float(points[number]) if number < len(points) else math.inf

        lower, upper = (self._bracket(quantity, rank) for rank in self._middle)
        lowest, highest = ((value(one) + value(other)) / 2 for one, other in zip(lower, upper, strict=True))
        return lowest, highest

    # answers -------------------------------------------------------------------------------------------

    def _rising(self, quantity: Quantity) -> tuple[list[int], np.ndarray]:
        """Grid points asked about in order, with both ends, and rising counts."""
        answers = sorted(self.answers[quantity].items())
        numbers = [-1, *(number for number, _ in answers), len(GRIDS[quantity].points)]
        counts = np.array([count for _, count in answers], float)
        if self.noise and counts.size:
            counts = np.clip(isotonic_regression(counts).x, 0, self.cases)
        return numbers, np.concatenate([[0.0], counts, [float(self.cases)]])

    def _bracket(self, quantity: Quantity, rank: float) -> tuple[int, int]:
        """Neighbours among the points asked about, between which the case of this rank lies."""
        numbers, counts = self._rising(quantity)
        place = min(max(int(np.searchsorted(counts, rank + 0.5, side="right")), 1), len(numbers) - 1)
        return numbers[place - 1], numbers[place]

    def _value(self, quantity: Quantity, rank: float) -> float:
        """The value of a rank: the simplest number between the neighbours; with noise, in proportion."""
        grid, (low, high) = GRIDS[quantity], self._bracket(quantity, rank)
        first, last = (float(grid.points[min(max(number, 0), len(grid.points) - 1)]) for number in (low, high))
        if not self.noise or self._have_one(quantity, rank):
            return roundest_between(int(first), int(last)) if grid.whole else shortest_between(first, last)
        before, after = self._counts_at(quantity, rank)
        part = (rank + 0.5 - before) / (after - before) if after > before else 0.5
        return float(first * (last / first) ** part)

    def _counts_at(self, quantity: Quantity, rank: float) -> tuple[float, float]:
        """Cases below each of the neighbours."""
        numbers, counts = self._rising(quantity)
        place = numbers.index(self._bracket(quantity, rank)[0])
        return float(counts[place]), float(counts[place + 1])

    def _have_one(self, quantity: Quantity, rank: float) -> bool:
        """Whether half of all cases lie between two neighbours: they have one value, such as 512 voxels."""
        before, after = self._counts_at(quantity, rank)
        return after - before >= self.cases / 2

    def _of_axes(self, name: str, rank: float) -> list[float]:
        """Values of a rank, axis by axis; the mean of axes that the noise does not tell apart."""
        quantities = [Quantity.of(name, axis) for axis in range(len(AXES))]
        values = [self._value(quantity, rank) for quantity in quantities]
        if not self.noise:
            return values
        alike = [
            [
                other
                for other, quantity in enumerate(quantities)
                if self._is_near(quantity, value, rank) and self._is_near(quantities[axis], values[other], rank)
            ]
            for axis, value in enumerate(values)
        ]  # each is like itself: its value lies in its own bracket
        return [float(np.mean([values[other] for other in others])) for others in alike]

    def _products(self, spacings: list[float], shapes: list[float], extents: list[float]) -> list[float]:
        """Extents; of an axis that has one shape, and where noise does not tell them apart, spacing times shape."""
        products = [spacing * shape for spacing, shape in zip(spacings, shapes, strict=True)]
        rank = self._middle[0]
        return [
            product
            if self._have_one(Quantity.of("shape", axis), rank)
            and self._is_near(Quantity.of("extent", axis), product, rank)
            else extent
            for axis, (product, extent) in enumerate(zip(products, extents, strict=True))
        ]

    def _is_near(self, quantity: Quantity, value: float, rank: float) -> bool:
        """Whether so many cases lie below ``value`` that, with this noise, it may be that of ``rank``."""
        numbers, counts = self._rising(quantity)
        place = int(np.searchsorted(GRIDS[quantity].points[numbers[1:-1]], value, side="right"))
        return bool(counts[place] - 2 * self.noise <= rank <= counts[place + 1] + 2 * self.noise)


def shortest_between(low: float, high: float) -> float:
    """The number of fewest digits in [low, high), nearest to its middle.

    >>> shortest_between(0.9998, 1.0002), shortest_between(0.70311, 0.70325), shortest_between(317, 318)
    (1.0, 0.7032, 317.0)
    """
    for digits in range(-9, 12):
        unit = 10.0**-digits
        nearest = np.rint((low + high) / 2 / unit)
        for whole in (nearest, nearest - 1, nearest + 1):
            number = float(f"{whole * unit:.12g}")
            if low <= number < high:
                return number
    return low


def roundest_between(low: int, high: int) -> int:
    """The multiple of the largest power of two in [low, high).

    >>> roundest_between(508, 519), roundest_between(317, 318), roundest_between(20, 31)
    (512, 317, 24)
    """
    unit = 1
    while -(-low // (2 * unit)) * 2 * unit < high:
        unit *= 2
    return max(low, -(-low // unit) * unit)
