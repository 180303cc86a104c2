"""Weighted means of segmentation heads, class by class, over the nodes that annotate the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fednnunet.errors import ConfigError
from fednnunet.exchange.rounding import is_rounded
from fednnunet.server.strategy.layer_groups import LayerGroups

Annotated = Mapping[int, Mapping[str, Sequence[bool]]]
"""Node id to head to, for each class, whether the node annotates it."""


class RowAverage:
    """Means of heads, whose first axis are classes: weights ``(classes, features, 1, 1, 1)`` and biases ``(classes,)``.

    For row *c* of a head, over the nodes *k* of a round with weight *n_k*, where *a_kc* is 1 if node *k* annotates the
    class, and else 0 (every node annotates the background)::

        w_c = sum_k(n_k * a_kc * w_kc) / sum_k(n_k * a_kc)

    A row that no node of the round annotates stays as the nodes were sent it; where they were sent none, it is the mean
    over all of them.

    **A row with one annotator is that node's own: the average hides nothing of it.** Who reads the server's averages
    has this part of that node's network.

    Args:
        groups: Layers that each node exchanges; heads that do not travel are left out.
        annotated: The rows of each head.
        names: Node id to the node's name.

    Attributes:
        heads: Groups of heads.

    Raises:
        ConfigError: A layer that is a head at one node, and none at another that it is averaged with; a head that no
            optimizer trains; or one with another number of rows than classes.
    """

    def __init__(self, groups: LayerGroups, annotated: Annotated, names: Mapping[int, str]) -> None:
        self._rows: dict[int, dict[str, np.ndarray]] = {}
        for node in groups.nodes:
            shapes, rows = groups.shapes_of(node), annotated.get(node, {})
            self._rows[node] = {
                groups.group_of(node, head): np.array(rows[head], bool) for head in rows if head in shapes
            }
            for head, shape in shapes.items():
                if head in rows and shape[:1] != (len(rows[head]),):
                    raise ConfigError(
                        f"node {names[node]}: head {head} of shape {shape} is for {len(rows[head])} classes"
                    )
        self.heads = frozenset(group for rows in self._rows.values() for group in rows)
        for node in groups.nodes:
            for layer, group in groups.of_node(node).items():
                if group in self.heads and (group not in self._rows[node] or group in groups.buffers):
                    raise ConfigError(
                        f"node {names[node]}: layer {layer} is no head that is trained, but it is averaged with one; "
                        "install the same software at all nodes"
                    )
        self.reset({})

    def reset(self, start: Mapping[str, np.ndarray]) -> None:
        """Begin the means of a round; ``start`` is what its nodes were sent, by group."""
        self._start = {group: array for group, array in start.items() if group in self.heads}
        self._sums: dict[str, _RowSums] = {}

    def add(self, node: int, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Add the heads of a node, by group; its other layers are not looked at."""
        for group, rows in self._rows[node].items():
            if group in arrays:
                sums = self._sums.setdefault(group, _RowSums(arrays[group]))
                sums.add(arrays[group], weight, rows)

    def result(self) -> dict[str, np.ndarray]:
        """Means by group, in the types of :meth:`~fednnunet.server.strategy.averaging.StreamingAverage.result`."""
        heads = {group: sums.mean(self._start.get(group)) for group, sums in self._sums.items()}
        self.reset({})
        return heads


class _RowSums:
    """Weighted sums of one head, in the precision of :class:`~fednnunet.server.strategy.averaging.StreamingAverage`."""

    def __init__(self, like: np.ndarray) -> None:
        self._dtype = np.dtype(np.float32) if is_rounded(like.dtype) else like.dtype
        precision = np.float32 if is_rounded(like.dtype) else np.float64
        self._sums, self._of_all = np.zeros(like.shape, precision), np.zeros(like.shape, precision)
        self._weights, self._weight_of_all = np.zeros(len(like)), 0.0

    def add(self, head: np.ndarray, weight: float, rows: np.ndarray) -> None:
        weighted = np.multiply(head, weight, dtype=self._sums.dtype)
        self._sums[rows] += weighted[rows]
        self._weights[rows] += weight
        self._of_all += weighted
        self._weight_of_all += weight

    def mean(self, otherwise: np.ndarray | None) -> np.ndarray:
        """Row by row; of rows without a sum what is in ``otherwise``, or the mean over all."""
        rest = self._of_all / self._weight_of_all if otherwise is None else otherwise
        mean, rows = rest.astype(self._dtype), self._weights > 0
        weights = self._weights[rows].astype(self._sums.dtype)
        mean[rows] = self._sums[rows] / weights.reshape(-1, *[1] * (mean.ndim - 1))
        return mean
