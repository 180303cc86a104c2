"""Weighted means of segmentation heads, class by class, over the nodes that annotate the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fednnunet.errors import ConfigError
from fednnunet.server.strategy.averaging import StreamingAverage
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
        self._rows: dict[int, dict[str, tuple[bool, ...]]] = {}
        for node in groups.nodes:
            shapes, rows = groups.shapes_of(node), annotated.get(node, {})
            self._rows[node] = {groups.group_of(node, head): tuple(rows[head]) for head in rows if head in shapes}
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
        self._annotators, self._everyone = StreamingAverage(), StreamingAverage()
        self.reset({})

    def reset(self, start: Mapping[str, np.ndarray]) -> None:
        """Begin the means of a round; ``start`` is what its nodes were sent, by group."""
        self._start = {group: array for group, array in start.items() if group in self.heads}
        self._classes: dict[str, int] = {}
        self._annotators.reset()
        self._everyone.reset()

    def add(self, node: int, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Add the heads of a node, by group; its other layers are not looked at."""
        for group in [group for group in arrays if group in self.heads]:
            rows = {_key(group, row): arrays[group][row : row + 1] for row in range(len(arrays[group]))}
            self._classes[group] = len(rows)
            annotates = self._rows[node][group]
            self._annotators.add({key: rows[key] for key, own in zip(rows, annotates, strict=True) if own}, weight)
            if group not in self._start:
                self._everyone.add(rows, weight)

    def result(self) -> dict[str, np.ndarray]:
        """Means by group, in the types of :meth:`~fednnunet.server.strategy.averaging.StreamingAverage.result`."""
        means = {**self._everyone.result(), **self._annotators.result()}
        heads = {}
        for group, classes in self._classes.items():
            keys = [_key(group, row) for row in range(classes)]
            dtype = next(means[key].dtype for key in keys if key in means)
            rows = [
                means[key] if key in means else self._start[group][row : row + 1].astype(dtype)
                for row, key in enumerate(keys)
            ]
            heads[group] = np.concatenate(rows)
        self.reset({})
        return heads


def _key(group: str, row: int) -> str:
    return f"{group}[{row}]"
