"""Layers in two bytes per value, without loss over rounds: error feedback, the same at node and server.

A sender rounds ``x + e`` instead of ``x`` and keeps the rounding error as the next ``e`` (Seide et al. 2014, "1-bit
stochastic gradient descent"; Karimireddy et al. 2019, "Error feedback fixes SignSGD"). What was sent and the residual
add up to what was to be sent, over any number of rounds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK, check_finite, is_float
from fednnunet.exchange.messages import ExchangeDtype


class ErrorFeedback:
    """Rounds named arrays in every federated round, and carries the rounding errors into the next.

    Args:
        dtype: data type of what travels; with ``float32`` there is nothing to round.
        exact: arrays that travel as they are, such as running statistics: what one round's rounding leaves over could
            make the next round's variance negative.

    Attributes:
        residuals: name to what is still to be sent (float32, of the array's shape).
    """

    def __init__(self, dtype: ExchangeDtype, exact: Collection[str] = ()) -> None:
        self.dtype = dtype
        self.exact = frozenset(exact)
        self.residuals: dict[str, np.ndarray] = {}
        self._largest = float(ml_dtypes.finfo(dtype).max)

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded."""
        return self.dtype != "float32"

    def is_rounding(self, name: str, dtype: np.dtype) -> bool:
        """Whether this array is rounded: a float that is not exact."""
        return is_float(dtype) and name not in self.exact

    def dtype_of(self, name: str, dtype: np.dtype) -> np.dtype:
        """Type that an array of ``dtype`` travels as."""
        return np.dtype(self.dtype) if self.is_rounding(name, dtype) else dtype

    def expect(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Announce an array that will be sent; its residual is zero where it was never sent before."""
        if self.is_rounding(name, dtype) and name not in self.residuals:
            self.residuals[name] = np.zeros(shape, dtype=np.float32)

    def encode(self, arrays: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray], where: str) -> None:
        """Write ``arrays`` plus residuals, rounded, into ``out``.

        A value beyond the largest of the type is sent as the largest; the difference stays in the residual.

        Args:
            arrays: what is to be sent.
            out: contiguous arrays of the same names and shapes and of :meth:`dtype_of` their dtypes.
            where: owner of the arrays, for the error.

        Raises:
            ProtocolError: values that are not finite; names ``where`` and the layer; nothing is changed.
        """
        check_finite(arrays, where)
        for name, array in arrays.items():
            if not self.is_rounding(name, array.dtype):
                np.copyto(out[name], array)
                continue
            self.expect(name, array.shape, array.dtype)
            _round(array.reshape(-1), self.residuals[name].reshape(-1), out[name].reshape(-1), self._largest)

    def encoded(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """:meth:`encode` into new arrays."""
        out = {name: np.empty(array.shape, self.dtype_of(name, array.dtype)) for name, array in arrays.items()}
        self.encode(arrays, out, where)
        return out


def _round(values: np.ndarray, residual: np.ndarray, out: np.ndarray, largest: float) -> None:
    for start in range(0, values.size, BLOCK):
        block = slice(start, start + BLOCK)
        exact = values[block] + residual[block]
        out[block] = np.clip(exact, -largest, largest)
        np.subtract(exact, out[block], out=residual[block], casting="same_kind")


def decode(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rounded arrays as float32, which holds them exactly; all others as they are."""
    return {name: array.astype(np.float32) if is_rounded(array.dtype) else array for name, array in arrays.items()}


def is_rounded(dtype: np.dtype) -> bool:
    """Whether ``dtype`` is one that layers are rounded to."""
    return is_float(dtype) and dtype.itemsize < 4


def check_dtypes(
    arrays: Mapping[str, np.ndarray], dtype: ExchangeDtype, where: str, exact: Collection[str] = ()
) -> None:
    """Check that layers have the requested type; integers, and layers that are ``exact``, travel as they are.

    Raises:
        ProtocolError: names ``where`` and the first such layer.
    """
    for name, array in arrays.items():
        wanted = "float32" if name in exact else dtype
        is_requested = array.dtype == np.dtype(wanted) or (wanted == "float32" and not is_rounded(array.dtype))
        if is_float(array.dtype) and not is_requested:
            raise ProtocolError(f"{where} sent layer {name} as {array.dtype} instead of {wanted}")
