"""How far a round took a node's layers, and which updates are too large to be averaged.

One node that sends values ten times as far away as the others do moves their mean more than all of them together. What
is too large is told from the updates of the last rounds, which are known before the first reply of a round is in: so
replies need not be kept for it, and their order does not matter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from statistics import median_low

import numpy as np

from fednnunet.exchange.arrays import BLOCK, FLOATS, check_finite

ROUNDS_KNOWN = 5
"""Updates of so many rounds tell what is usual; learning rates change over more."""
ENOUGH_TO_COMPARE = 3
"""Replies of a round whose median one of them cannot decide."""
WEIGHTS = 1.0
"""An update as large as the weights themselves."""
FIRST_SUSPICION = WEIGHTS
"""From here on updates are compared with the others of their round before anything is known of a fold."""
HARMLESS = 1e-3
"""Of the weights: smaller updates are never too large, such as the rounding errors of a run that stands still."""


class RoundReference:
    """What nodes were sent at the start of a round.

    Args:
        arrays: by group of layers; not copied.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)
        self._squared: dict[str, float] = {}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Of the arrays, by group."""
        return {group: array.dtype for group, array in self._arrays.items()}

    def update_norm(self, arrays: Mapping[str, np.ndarray], groups: Mapping[str, str], where: str) -> float | None:
        """L2 norm of what a node's layers have changed by, over that of the layers it was sent.

        Args:
            arrays: layers that the node sends.
            groups: of its layers.
            where: whose they are, for the error.

        Returns:
            Infinity where it is beyond float32; None where nothing but zeros was sent, so that there is no scale.

        Raises:
            ProtocolError: NaN or infinity in any layer; names ``where`` and the layer.
        """
        changed = held = 0.0
        for layer, array in arrays.items():
            start = self._arrays.get(groups[layer])
            if start is None or array.dtype.name not in FLOATS:
                check_finite({layer: array}, where)
                continue
            squared = _squared_norm(array, start)
            if not math.isfinite(squared):  # a value that is not finite, or finite ones whose squares are not
                check_finite({layer: array}, where)
            changed += squared
            held += self._squared_norm_of(groups[layer])
        return math.sqrt(changed / held) if held else None

    def _squared_norm_of(self, group: str) -> float:
        if group not in self._squared:
            self._squared[group] = _squared_norm(self._arrays[group])
        return self._squared[group]


def _squared_norm(array: np.ndarray, minus: np.ndarray | None = None) -> float:
    """Of an array or a difference, over blocks that stay in the cache; of two bytes per value in float32."""
    values, start = array.reshape(-1), None if minus is None else minus.reshape(-1)
    dtype = np.result_type(array.dtype.name if array.itemsize >= 4 else "float32")
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite shows in the sum
        for place in range(0, values.size, BLOCK):
            block = values[place : place + BLOCK].astype(dtype, copy=False)
            if start is not None:
                block = block - start[place : place + BLOCK].astype(dtype, copy=False)
            total += float(np.dot(block, block))
    return total


class UpdateLimit:
    """Which updates are too large: many times the median of those that were averaged before.

    An update that is too large beside the last rounds' waits until its round is over: it may be that all are, as where
    a learning rate starts anew. It is refused if it is too large beside the round's own median, too, where there are
    three updates or more. Of a fold's first round nothing is known before, so that updates as large as the weights
    wait; where fewer than three are in, they are compared with the weights. The median of an even number is the lower
    of the two in its middle.

    Args:
        times: the median an update is too large; None for no limit.
    """

    def __init__(self, times: float | None) -> None:
        if times is not None and not times > 1:
            raise ValueError(f"max_update_norm={times}: must be more than 1, or null for no limit")
        self._times = times
        self._known: deque[list[float]] = deque(maxlen=ROUNDS_KNOWN)

    def begin_fold(self, rounds: Iterable[Collection[float]] = ()) -> None:
        """Forget, or know the norms of rounds that an interrupted run has behind it, in their order."""
        self._known.clear()
        for norms in rounds:
            self.end_round(norms)

    def end_round(self, norms: Collection[float]) -> None:
        """Know the norms of the updates that were averaged in a round."""
        if norms:
            self._known.append(list(norms))

    def is_suspicious(self, norm: float | None) -> bool:
        """Whether an update must be compared with the others of its round; tells without knowing them."""
        if self._times is None or norm is None:
            return False
        usual = self._usual_before
        return norm >= (FIRST_SUSPICION if usual is None else max(self._times * usual, HARMLESS))

    def problem(self, norm: float, of_round: Collection[float]) -> str | None:
        """What is wrong with an update that may be too large; None where it is as large as others of its round.

        Args:
            norm: of the update.
            of_round: norms of all updates of the round, this one included.
        """
        assert self._times is not None
        before = self._usual_before
        known = [] if before is None else [before]
        if len(of_round) >= ENOUGH_TO_COMPARE:
            known.append(median_low(of_round))
        usual = max(known, default=WEIGHTS)
        if norm < self._times * usual:
            return None
        return (
            f"sent an update {norm:.3g} times as large as the weights, where {usual:.3g} is usual; "
            f"strategy.aggregation.max_update_norm={self._times:g} allows less than {self._times * usual:.3g}"
        )

    @property
    def _usual_before(self) -> float | None:
        """Median of the last rounds; None before the first."""
        return median_low(norm for norms in self._known for norm in norms) if self._known else None
