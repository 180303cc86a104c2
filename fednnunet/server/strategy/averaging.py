"""Asymmetric averaging of named arrays (paper, eq. 2-4)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from flwr.app import ArrayRecord

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK, check_finite
from fednnunet.exchange.records import from_array_record
from fednnunet.exchange.rounding import is_rounded
from fednnunet.server.strategy.layer_matching import Matching, Share, match_layers
from fednnunet.server.strategy.update_limit import RoundReference

Node = TypeVar("Node", bound=Hashable)


def common_layers(
    states: Sequence[Mapping[str, np.ndarray]], matching: Matching = "name", share: Share = "all"
) -> dict[str, dict[int, str]]:
    """Groups of layers that are averaged together.

    Returns:
        Group name to its members, as node number to the layer's name there.
    """
    shapes = {number: _shapes(state) for number, state in enumerate(states)}
    groups: dict[str, dict[int, str]] = {}
    for node, layers in match_layers(shapes, matching, share).items():
        for layer, group in layers.items():
            groups.setdefault(group, {})[node] = layer
    return groups


def average_layers(
    states: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[float] | None = None,
    matching: Matching = "name",
    share: Share = "all",
) -> list[dict[str, np.ndarray]]:
    """Average the common layers of ``states``.

    Args:
        states: named arrays of every node.
        weights: of the nodes; None for equal ones (paper, eq. 3).
        matching: see :func:`~fednnunet.server.strategy.layer_matching.match_layers`.
        share: likewise.

    Returns:
        For every node, its shared layers with their averages; the others stay the node's own.
    """
    matched = match_layers({number: _shapes(state) for number, state in enumerate(states)}, matching, share)
    average = StreamingAverage(
        {node: {layer: states[node][layer] for layer in matched[node]} for node in matched}, matched
    )
    for node, state in enumerate(states):
        shared = {layer: state[layer] for layer in matched[node]}
        average.add(node, shared, 1.0 if weights is None else float(weights[node]))
    means = average.result()
    return [{layer: means[group] for layer, group in matched[node].items()} for node in range(len(states))]


def _shapes(state: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in state.items()}


def check_layers(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Refuse other layers than those of ``shapes``.

    Raises:
        ProtocolError: names ``where`` and the layer that is missing, was not asked for or has another shape.
    """
    for layer in shapes:
        if layer not in arrays:
            raise ProtocolError(f"{where} did not send layer {layer}")
    for layer, array in arrays.items():
        if layer not in shapes:
            raise ProtocolError(f"{where} sent layer {layer}, which it was not asked for")
        if tuple(array.shape) != tuple(shapes[layer]):
            raise ProtocolError(
                f"{where} sent layer {layer} with shape {tuple(array.shape)} instead of {tuple(shapes[layer])}"
            )


def check_model(record: ArrayRecord, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Refuse arrays that are not just the layers of ``shapes``, with values that are finite.

    Raises:
        ProtocolError: names ``where`` and the layer.
    """
    arrays = from_array_record(record, where)
    check_layers(arrays, shapes, where)
    check_finite(arrays, where)


class StreamingAverage(Generic[Node]):
    """Weighted mean of every group of layers; arrays are added as they arrive and can then be forgotten.

    Sums run in float64, in blocks that stay in the cache; they and the means take twice the memory of a float32
    model, whatever the number of nodes. Of float16 and bfloat16 they run in float32, which is half of that: its
    significand has 24 bits, theirs 11 and 8, so the sum of a thousand nodes errs by less than what sending its mean
    in two bytes rounds away. Nodes are added in one fixed order whatever the order of arrival, so the
    result is the same to the last bit; what arrives before its turn is held until then.

    Args:
        shapes: node to layer to something with a ``shape``, or a shape.
        groups: node to layer to group (:func:`~fednnunet.server.strategy.layer_matching.match_layers`).
    """

    def __init__(self, shapes: Mapping[Node, Mapping[str, object]], groups: Mapping[Node, Mapping[str, str]]) -> None:
        self._shapes: dict[Node, dict[str, tuple[int, ...]]] = {
            node: {layer: tuple(getattr(shape, "shape", shape)) for layer, shape in layers.items()}  # type: ignore[arg-type]
            for node, layers in shapes.items()
        }
        self._groups = groups
        self._order = list(groups)
        self._sums: dict[str, np.ndarray] = {}
        self.reset()

    def reset(self, dtypes: Mapping[str, np.dtype] | None = None) -> None:
        """Start a new round in the same memory.

        Args:
            dtypes: that layers of a group must have; of other groups the first node's decide.
        """
        self._early: dict[Node, tuple[Mapping[str, np.ndarray], float]] = {}
        self._last: dict[Node, tuple[Mapping[str, np.ndarray], float]] = {}
        self._seen: set[Node] = set()
        self._next = 0
        self._weights: dict[str, float] = {}
        self._dtypes = dict(dtypes or {})

    def add(self, node: Node, arrays: Mapping[str, np.ndarray], weight: float = 1.0, name: str | None = None) -> None:
        """Add the shared layers of ``node``.

        Raises:
            ProtocolError: unknown node, sent twice, missing or unknown layer, other shape or dtype, or values
                that are not finite; names node and layer, and leaves the sums as they were.
        """
        self.check(node, arrays, weight, f"node {name if name is not None else node}")
        self.add_checked(node, arrays, weight)

    def add_checked(self, node: Node, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Add what :meth:`check` has passed; of a node that was skipped, after all others."""
        if node in self._seen:
            self._last[node] = (arrays, weight)
            return
        self._seen.add(node)
        self._early[node] = (arrays, weight)
        self._add_in_turn()

    def skip(self, node: Node) -> None:
        """Don't wait for ``node``: it was refused or is absent, or may yet be added after the others."""
        self._seen.add(node)
        self._early[node] = ({}, 0.0)
        self._add_in_turn()

    def check(
        self,
        node: Node,
        arrays: Mapping[str, np.ndarray],
        weight: float,
        where: str,
        start: RoundReference | None = None,
    ) -> float | None:
        """Whether ``arrays`` can be added.

        Returns:
            How far they are from ``start``: :meth:`~fednnunet.server.strategy.update_limit.RoundReference.update_norm`.

        Raises:
            ProtocolError: as :meth:`add`.
        """
        if node not in self._groups:
            raise ProtocolError(f"{where} is not part of this round")
        if node in self._seen:
            raise ProtocolError(f"{where} has answered this round already")
        if not np.isfinite(weight) or weight <= 0:
            raise ProtocolError(f"{where} sent the weight {weight}; it must be positive")
        expected = self._groups[node]
        check_layers(arrays, {layer: self._shapes[node][layer] for layer in expected}, where)
        for layer, array in arrays.items():
            dtype = self._dtypes.get(expected[layer], array.dtype)
            if array.dtype != dtype:
                raise ProtocolError(f"{where} sent layer {layer} as {array.dtype} instead of {dtype}")
        norm = None
        if start is None:
            check_finite(arrays, where)
        else:
            norm = start.update_norm(arrays, expected, where)
        for layer, array in arrays.items():
            self._dtypes.setdefault(expected[layer], array.dtype)
        return norm

    def _add_in_turn(self) -> None:
        while self._next < len(self._order) and self._order[self._next] in self._early:
            node = self._order[self._next]
            self._add(node, *self._early.pop(node))
            self._next += 1

    def _add(self, node: Node, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        for layer, array in arrays.items():
            group = self._groups[node][layer]
            first = group not in self._weights
            precision = np.float32 if is_rounded(array.dtype) else np.float64
            if group not in self._sums or self._sums[group].dtype != precision:
                self._sums[group] = np.empty(array.shape, dtype=precision)
            _accumulate(self._sums[group], array, weight, first)
            self._weights[group] = self._weights.get(group, 0.0) + weight

    def result(self) -> dict[str, np.ndarray]:
        """Means by group, in the dtype that was sent, float32 for float16 and bfloat16; integers are rounded.

        They lie in the memory of the sums: the next round overwrites them, and :meth:`add` comes after
        :meth:`reset`.
        """
        for node in self._order:
            if node not in self._seen:
                self.skip(node)
        for node in self._order:
            if node in self._last:
                self._add(node, *self._last.pop(node))
        return {group: self._mean(group, weight) for group, weight in self._weights.items()}

    def _mean(self, group: str, weight: float) -> np.ndarray:
        total, sent = self._sums[group], self._dtypes[group]
        return _divide(total, weight, total.dtype if is_rounded(sent) else sent)


def _divide(total: np.ndarray, weight: float, dtype: np.dtype) -> np.ndarray:
    """``total / weight`` as ``dtype`` in the same memory: what is written never reaches what is still to be read."""
    source = total.reshape(-1)
    target = source.view(np.uint8)[: source.size * dtype.itemsize].view(dtype)
    for start in range(0, source.size, BLOCK):
        block = source[start : start + BLOCK] / weight
        target[start : start + BLOCK] = np.rint(block) if dtype.kind in "iu" else block
    return target.reshape(total.shape)


def _accumulate(total: np.ndarray, array: np.ndarray, weight: float, first: bool) -> None:
    source, target = np.ascontiguousarray(array).reshape(-1), total.reshape(-1)
    for start in range(0, source.size, BLOCK):
        block = source[start : start + BLOCK]
        if first:
            np.multiply(block, weight, out=target[start : start + BLOCK], dtype=total.dtype)
        elif weight == 1.0:
            target[start : start + BLOCK] += block
        else:
            target[start : start + BLOCK] += np.multiply(block, weight, dtype=total.dtype)
