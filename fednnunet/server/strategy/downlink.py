"""What nodes are sent of the server's layers: as they are, rounded, or as steps from what they were sent last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord

from fednnunet.exchange.arrays import SharedArrays, Spec
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.quantisation import StepFeedback, digest, is_quantised
from fednnunet.exchange.records import as_array_record, record_of, to_array_record
from fednnunet.exchange.rounding import ErrorFeedback

MEMORIES = 2
"""Averages in shared memory, which nodes on this machine read there: of the last round, and of the one before."""


class Step(NamedTuple):
    """A group's way from what nodes were sent to what they are sent next; encoded once for all of them.

    Attributes:
        reference: digest of what it starts from.
        wire: the step as it travels.
        result: what it leads to: the very bytes that a node without the reference is sent.
    """

    reference: str
    wire: Array
    result: bytes


class Downlink:
    """Prepares averages for the nodes, and remembers what that leaves over, by group.

    With steps, what nodes are sent of the averages *w* after a round is ``s'``, which follows ``s``, what they were
    sent before, by a quantised step; *e* is what quantising left over (DoubleSqueeze, Tang et al. 2019)::

        d = w - s + e,    q = quantise(d),    s' = s + dequantise(q),    e' = d - dequantise(q)

    Args:
        dtype: type that trained layers travel in.
        exact: groups that travel as they are, such as running statistics.
    """

    def __init__(self, dtype: ExchangeDtype, exact: Collection[str] = ()) -> None:
        self.dtype = dtype
        self._steps_taken = StepFeedback(dtype, exact) if is_quantised(dtype) else None
        self._rounding = ErrorFeedback("float32" if is_quantised(dtype) else dtype, exact)
        self._steps: dict[str, Step] = {}
        self._holders: frozenset[int] = frozenset()
        self._memories: list[SharedArrays] = []

    @property
    def remembers(self) -> bool:
        """Whether the next round needs what was left over."""
        return self._steps_taken is not None or self._rounding.rounds

    @property
    def is_rounding(self) -> bool:
        """Whether what nodes are sent is of another type than float32."""
        return self._rounding.rounds

    @property
    def residuals(self) -> dict[str, np.ndarray]:
        """What is still to be sent, by group."""
        return (self._steps_taken or self._rounding).residuals

    @residuals.setter
    def residuals(self, residuals: dict[str, np.ndarray]) -> None:
        (self._steps_taken or self._rounding).residuals = residuals

    def begin_round(self, nodes: Collection[int]) -> None:
        """Note which nodes are sent the arrays of a round: the next steps, and no others, start from there."""
        self._holders = frozenset(nodes)
        self._steps = {}

    def to_record(self, averages: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]) -> ArrayRecord:
        """Averages of a round as nodes are sent them; one by one, so that hardly more than the result is in memory.

        Args:
            averages: by group.
            start: what the nodes of the round were sent.
        """
        rounds, dtype_of = self._rounding.rounds, self._rounding.dtype_of
        memory = self._memory_for(
            {
                group: (array.shape, dtype_of(group, array.dtype) if rounds else array.dtype)
                for group, array in averages.items()
            }
        )
        views, record = memory.views(), as_array_record(memory)
        for group, array in averages.items():
            before, view = start.get(group), views[group]
            if self._steps_taken is not None and before is not None and self._steps_taken.is_step(group, array, before):
                np.copyto(view, before)
                wire = self._steps_taken.encode(group, array, before, "the server", view)
                step = to_array_record({group: wire})[group]
                self._steps[group] = Step(digest(before), step, record[group].data)
            elif rounds:
                self._rounding.encode({group: array}, {group: view}, "the server")
            else:
                np.copyto(view, array)
        return record

    def _memory_for(self, spec: Spec) -> SharedArrays:
        """Memory for the arrays of a round: that of the round before the last, unless somebody still has it."""
        free = next((memory for memory in self._memories if memory.is_free_for(spec)), None)
        memory = SharedArrays.allocate(spec) if free is None else free
        self._memories = [memory, *(known for known in self._memories if known is not memory)][:MEMORIES]
        return memory

    def shorten(self, node: int, whole: ArrayRecord, groups: Mapping[str, str]) -> tuple[ArrayRecord, dict[str, str]]:
        """Layers for a node, as steps where it was sent what they start from.

        Args:
            node: id of the node.
            whole: layers as :meth:`to_record` returned them, under the node's own names.
            groups: layer to group.

        Returns:
            The layers; and those that are steps, to the digest of what they start from.
        """
        if node not in self._holders:
            return whole, {}
        steps = {
            layer: step
            for layer, array in whole.items()
            if (step := self._steps.get(groups[layer])) is not None and step.result is array.data
        }
        record = record_of({layer: steps[layer].wire if layer in steps else whole[layer] for layer in whole})
        return record, {layer: step.reference for layer, step in steps.items()}
