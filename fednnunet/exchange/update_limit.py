"""How much a round changed a node's layers, and which updates are too large to be averaged.

A node whose values lie ten times as far away as the others' moves the mean more than all of them together. The size
that is usual is known from the last rounds before the first reply of a round arrives: replies need not be kept to be
compared, and the order in which they arrive does not matter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from statistics import median_low

import numpy as np

from fednnunet.exchange.arrays import BLOCK, check_finite, is_float

ROUNDS_REMEMBERED = 5
"""Rounds whose updates define what is usual; over more of them the learning rate changes."""
MIN_COMPARED = 3
"""Smallest number of replies whose median a single one cannot decide."""
SIZE_OF_WEIGHTS = 1.0
"""An update as large as the weights themselves."""
FIRST_ROUND_SUSPICION = SIZE_OF_WEIGHTS
"""In the first round of a fold, updates from this size on are compared with the others of their round."""
HARMLESS = 1e-3
"""Fraction of the weights below which no update is too large, such as rounding errors of a run that stands still."""


class RoundReference:
    """What nodes were sent at the start of a round.

    Args:
        arrays: by group of layers; not copied.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)
        self._squared: dict[str, float] = {}

    def array_of(self, group: str) -> np.ndarray | None:
        """What nodes were sent of a group; None where that is nothing."""
        return self._arrays.get(group)

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Type of each array, by group."""
        return {group: array.dtype for group, array in self._arrays.items()}

    def validate_and_measure(
        self, arrays: Mapping[str, np.ndarray], groups: Mapping[str, str], where: str
    ) -> float | None:
        """Check that a node's layers are finite, and measure their update, in one pass over them.

        With *w* the layers that the node sends and *w0* what it was sent of them, the norm of the update is
        ``||w - w0|| / ||w0||`` (L2). Being relative, it compares nodes with different networks.

        Args:
            arrays: layers that the node sends.
            groups: layer to group.
            where: whose layers they are, for the error.

        Returns:
            Norm of the update; infinity where it is beyond float32, None where nothing but zeros was sent, so that
            there is no scale.

        Raises:
            ProtocolError: NaN or infinity in any layer; names ``where`` and the layer.
        """
        changed = held = 0.0
        for layer, array in arrays.items():
            start = self._arrays.get(groups[layer])
            if start is None or not is_float(array.dtype):
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
    """Squared L2 norm of an array or a difference, in blocks that stay in the cache; in float32 or float64."""
    values, start = array.reshape(-1), None if minus is None else minus.reshape(-1)
    dtype = array.dtype if array.itemsize >= 4 else np.dtype(np.float32)
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite show in the sum
        for index in range(0, values.size, BLOCK):
            block = values[index : index + BLOCK].astype(dtype, copy=False)
            if start is not None:
                block = block - start[index : index + BLOCK].astype(dtype, copy=False)
            total += float(np.dot(block, block))
    return total


class UpdateLimit:
    """Which updates are too large: many times the median of those that were averaged before.

    An update that is too large compared with the last rounds waits until its round is over: all of them may be, as when
    a learning rate starts again. It is refused if it is also too large compared with the median of its own round, if
    the round has three updates or more. Before the first round of a fold nothing is known: updates as large as the
    weights wait, and if the round has fewer than three updates they are compared with the weights. The median of an
    even number of updates is the lower of the two in the middle.

    Args:
        times: factor to the median from which on an update is too large; None for no limit.
        statistics: the updates are of running statistics, which follow a node's images and not steps of an optimizer:
            changes of their own size are usual, and before the first round of a fold nothing is known of theirs.
        key: key of the configuration that sets ``times``, for messages.

    Raises:
        ValueError: a factor that is not above 1.
    """

    def __init__(
        self, times: float | None, *, statistics: bool = False, key: str = "strategy.aggregation.max_update_norm"
    ) -> None:
        if times is not None and not times > 1:
            raise ValueError(f"max_update_norm={times}: must be more than 1, or null for no limit")
        self._times, self._key = times, key
        self._smallest_usual = SIZE_OF_WEIGHTS if statistics else 0.0
        self._usual_at_first = math.inf if statistics else SIZE_OF_WEIGHTS
        self._of = "the running statistics" if statistics else "the weights"
        self._rounds: deque[list[float]] = deque(maxlen=ROUNDS_REMEMBERED)

    def begin_fold(self, rounds: Iterable[Collection[float]] = ()) -> None:
        """Forget other folds; remember the norms of the rounds that an interrupted run has finished, in their order."""
        self._rounds.clear()
        for norms in rounds:
            self.end_round(norms)

    def end_round(self, norms: Collection[float]) -> None:
        """Remember the norms of the updates that were averaged in a round."""
        if norms:
            self._rounds.append(list(norms))

    def is_suspicious(self, norm: float | None) -> bool:
        """Whether an update must be compared with the others of its round; needs no other reply of the round."""
        if self._times is None or norm is None:
            return False
        usual = self._usual_before
        if usual is None:
            return norm >= FIRST_ROUND_SUSPICION
        return norm >= max(self._times * max(usual, self._smallest_usual), HARMLESS)

    def problem(self, norm: float | None, of_round: Collection[float]) -> str | None:
        """What is wrong with an update; None if it is not suspicious, or no larger than others of its round.

        Args:
            norm: norm of the update.
            of_round: norms of all updates of the round, this one included.
        """
        if self._times is None or norm is None or not self.is_suspicious(norm):
            return None
        before = self._usual_before
        medians = [] if before is None else [before]
        if len(of_round) >= MIN_COMPARED:
            medians.append(median_low(of_round))
        usual = max(self._smallest_usual, *medians) if medians else self._usual_at_first
        if norm < self._times * usual:
            return None
        return (
            f"sent an update {norm:.3g} times as large as {self._of}, where {usual:.3g} is usual; "
            f"{self._key}={self._times:g} allows less than {self._times * usual:.3g}"
        )

    @property
    def _usual_before(self) -> float | None:
        """Median of the last rounds; None before the first."""
        return median_low(norm for norms in self._rounds for norm in norms) if self._rounds else None
