"""Real numbers in the ring of integers modulo 2**32: sums are exact in any order, and can be masked.

A value *x* of weight *w* becomes ``rint(w * x * S)``. With *n* addends, each at most *R* in size,
``S = floor((2**31 - 1) / n) / R`` keeps every sum below 2**31, so that it never wraps around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class FixedPoint:
    """How real numbers are written as integers of the ring.

    Attributes:
        members: most addends of a sum.
        limit: largest size of an addend, after weighting.
    """

    members: int
    limit: float

    def __post_init__(self) -> None:
        if not (1 <= self.members <= LARGEST and 0 < self.limit < math.inf):
            raise ValueError(f"{self}: there must be members, and the limit must be positive")

    @property
    def scale(self) -> float:
        """Steps per unit."""
        return LARGEST // self.members / self.limit

    def encode(self, array: np.ndarray, weight: float, out: np.ndarray, where: str) -> None:
        """Write ``weight * array`` as integers of the ring.

        Args:
            array: floats.
            weight: weight of the addend, at most 1.
            out: contiguous int32 array of the same shape.
            where: owner and name of the array, for errors.

        Raises:
            ProtocolError: a value that is not finite, or beyond the limit: it is refused, never clipped.
        """
        values, target = array.reshape(-1), out.reshape(-1)
        for start in range(0, values.size, BLOCK):
            block = np.multiply(values[start : start + BLOCK], weight, dtype=np.float64)
            largest = float(np.abs(block).max())
            if not largest <= self.limit:  # also where it is not a number
                # Not how large: the server sees this text, and may set the limit.
                what = "a value that is too large" if math.isfinite(largest) else "NaN or infinity"
                raise ProtocolError(
                    f"{where} holds {what}; secure sums take at most {self.limit:g} (privacy.secure_sums.limit)"
                )
            block *= self.scale
            target[start : start + BLOCK] = np.rint(block, out=block)

    def decode(self, total: np.ndarray, weights: float) -> np.ndarray:
        """Mean, as float32, from a sum of integers.

        Args:
            total: int32.
            weights: sum of the weights of its addends.

        Raises:
            ProtocolError: a sum that its addends cannot have: one of them was not masked as the others expect.
        """
        # One step more than the largest sum: each addend was rounded.
        largest, scale = self.members * (LARGEST // self.members), self.scale * weights
        flat, mean = total.reshape(-1), np.empty(total.shape, dtype=np.float32)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            if max(int(block.max()), -int(block.min())) > largest:
                raise ProtocolError("a sum is larger than its addends allow")
            mean.reshape(-1)[start : start + BLOCK] = np.divide(block, scale, dtype=np.float64)
        return mean

    def error_bound(self, addends: int, weights: float) -> float:
        """Largest error of a mean by rounding to steps; that of float32 comes on top."""
        return addends / (2 * self.scale * weights)


def add(total: np.ndarray, array: np.ndarray) -> None:
    """Add ``array`` to ``total``, modulo 2**32; both int32."""
    np.add(total.view(np.uint32), array.view(np.uint32), out=total.view(np.uint32))
