"""Layers in two bytes per value, and nothing lost over rounds: error feedback, the same at node and server.

A sender rounds ``x + e`` instead of ``x`` and keeps what that took away as the next ``e`` (Seide et al. 2014, "1-bit
stochastic gradient descent"; Karimireddy et al. 2019, "Error feedback fixes SignSGD"). What was sent and what is left
over add up to what was to be sent, over any number of rounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK, FLOATS, check_finite
from fednnunet.exchange.messages import ExchangeDtype


class ErrorFeedback:
    """Rounds named arrays round by round, and carries what rounding takes away into the next.

    Args:
        dtype: of what travels; with ``float32`` there is nothing to round.

    Attributes:
        residuals: name to what is still to be sent (float32, of the array's shape).
    """

    def __init__(self, dtype: ExchangeDtype) -> None:
        self.dtype = dtype
        self.residuals: dict[str, np.ndarray] = {}
        self._largest = float(ml_dtypes.finfo(dtype).max)

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded at all."""
        return self.dtype != "float32"

    def dtype_of(self, dtype: np.dtype) -> np.dtype:
        """What arrays of ``dtype`` travel as: numbers with a fraction are rounded, integers are left."""
        return np.dtype(self.dtype) if dtype.name in FLOATS else dtype

    def expect(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """An array that will be sent, with nothing left over where it was never sent before."""
        if dtype.name in FLOATS and name not in self.residuals:
            self.residuals[name] = np.zeros(shape, dtype=np.float32)

    def encode(self, arrays: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray], where: str) -> None:
        """Write ``arrays`` and what was left over, rounded, into ``out``.

        What is beyond the largest value of the type is sent as that value; the rest is left over.

        Args:
            arrays: what is to be sent.
            out: contiguous arrays of the same names and shapes and of :meth:`dtype_of` their dtypes.
            where: whose arrays they are, for the error.

        Raises:
            ProtocolError: values that are not finite; names ``where`` and the layer, and nothing has changed.
        """
        check_finite(arrays, where)
        for name, array in arrays.items():
            if array.dtype.name not in FLOATS:
                np.copyto(out[name], array)
                continue
            self.expect(name, array.shape, array.dtype)
            _round(array.reshape(-1), self.residuals[name].reshape(-1), out[name].reshape(-1), self._largest)

    def encoded(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """:meth:`encode` into new arrays."""
        out = {name: np.empty(array.shape, self.dtype_of(array.dtype)) for name, array in arrays.items()}
        self.encode(arrays, out, where)
        return out


def _round(values: np.ndarray, residual: np.ndarray, out: np.ndarray, largest: float) -> None:
    for start in range(0, values.size, BLOCK):
        block = slice(start, start + BLOCK)
        wanted = values[block] + residual[block]
        out[block] = np.clip(wanted, -largest, largest)
        np.subtract(wanted, out[block], out=residual[block], casting="same_kind")


def decode(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rounded arrays as float32, which holds them exactly; all others as they are."""
    return {name: array.astype(np.float32) if is_rounded(array.dtype) else array for name, array in arrays.items()}


def is_rounded(dtype: np.dtype) -> bool:
    """Whether ``dtype`` is one that layers are rounded to."""
    return dtype.name in FLOATS and dtype.itemsize < 4


def check_dtypes(arrays: Mapping[str, np.ndarray], dtype: ExchangeDtype, where: str) -> None:
    """Refuse layers of another type than was asked for; integers always travel as they are.

    Raises:
        ProtocolError: names ``where`` and the first such layer.
    """
    for name, array in arrays.items():
        as_asked = array.dtype.name == dtype or (dtype == "float32" and not is_rounded(array.dtype))
        if array.dtype.name in FLOATS and not as_asked:
            raise ProtocolError(f"{where} sent layer {name} as {array.dtype} instead of {dtype}")
