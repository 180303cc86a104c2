"""Weighted means of named arrays (paper, eq. 3) and metrics, and checks of the layers that go into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK, check_finite
from fednnunet.exchange.flower_internals import aggregate_metricrecords
from fednnunet.exchange.records import from_array_record
from fednnunet.exchange.rounding import is_rounded

WEIGHT_KEY = "num-examples"
"""Metric with a node's number of training cases, as Flower's strategies call it."""


def check_layers(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Refuse layers other than those of ``shapes``.

    Raises:
        ProtocolError: names ``where`` and the layer that is missing, was not requested or has another shape.
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
    """Refuse arrays that are not exactly the layers of ``shapes``, with finite values.

    Raises:
        ProtocolError: names ``where`` and the layer.
    """
    arrays = from_array_record(record, where)
    check_layers(arrays, shapes, where)
    check_finite(arrays, where)


class StreamingAverage:
    """Weighted mean of every named array; arrays are added one set at a time and can then be forgotten.

    For array *g*, over the nodes *k* that sent it with weight *n_k* (FedAvg, McMahan et al. 2017, algorithm 1; equal
    weights are the paper's eq. 3)::

        mean_g = sum_k(n_k * w_kg) / sum_k(n_k)

    Sums run in float64, in blocks that stay in the cache; they and the means take twice the memory of a float32 model,
    whatever the number of nodes. Sums of float16 and bfloat16 run in float32, which is half of that: its significand
    has 24 bits, theirs 11 and 8, so the sum of a thousand nodes errs by less than what sending its mean in two bytes
    rounds away. The last bits of a sum depend on the order of addition; updates come in a fixed one
    (:class:`~fednnunet.server.strategy.reply_validation.ReplyValidator`).
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self.reset()

    def reset(self) -> None:
        """Start a new mean in the same memory."""
        self._weights: dict[str, float] = {}
        self._dtypes: dict[str, np.dtype] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: float = 1.0) -> None:
        """Add one node's arrays, by group; those of one name have one shape and one dtype."""
        for group, array in arrays.items():
            first = group not in self._weights
            precision = np.float32 if is_rounded(array.dtype) else np.float64
            if group not in self._sums or self._sums[group].dtype != precision:
                self._sums[group] = np.empty(array.shape, dtype=precision)
            _accumulate(self._sums[group], array, weight, first)
            self._weights[group] = self._weights.get(group, 0.0) + weight
            self._dtypes[group] = array.dtype

    def result(self) -> dict[str, np.ndarray]:
        """Means by group, in the dtype that was added, float32 for float16 and bfloat16; integers are rounded.

        They are in the memory of the sums: after a :meth:`reset` the next :meth:`add` overwrites them, and no
        :meth:`add` is possible before.
        """
        return {group: self._mean(group, weight) for group, weight in self._weights.items()}

    def _mean(self, group: str, weight: float) -> np.ndarray:
        total, dtype = self._sums[group], self._dtypes[group]
        return _divide(total, weight, total.dtype if is_rounded(dtype) else dtype)


def _divide(total: np.ndarray, weight: float, dtype: np.dtype) -> np.ndarray:
    """``total / weight`` as ``dtype`` in the same memory: what is written never reaches what is still to be read."""
    source = total.reshape(-1)
    target = source.view(np.uint8)[: source.size * dtype.itemsize].view(dtype)
    for start in range(0, source.size, BLOCK):
        block = source[start : start + BLOCK] / weight
        target[start : start + BLOCK] = np.rint(block) if dtype.kind in "iub" else block
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


def same_metrics(replies: Sequence[MetricRecord]) -> list[MetricRecord]:
    """The metrics that all replies have: a pseudo-Dice may be undefined at one node."""
    common = set.intersection(*(set(metrics) for metrics in replies))
    return [MetricRecord({key: metrics[key] for key in sorted(common)}) for metrics in replies]


def mean_metrics(replies: Sequence[MetricRecord]) -> MetricRecord:
    """Mean of the metrics that every node has, weighted by training cases."""
    records = [RecordDict({"metrics": metrics}) for metrics in same_metrics(replies)]
    return aggregate_metricrecords(records, WEIGHT_KEY)
