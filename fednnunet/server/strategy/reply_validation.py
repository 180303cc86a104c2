"""Which replies of a round are used: checked one by one, and handed on in a fixed order."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np
from flwr.app import Message, MetricRecord

from fednnunet.errors import ProtocolError, one_line
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.quantisation import StepFeedback, decode_step, is_quantised
from fednnunet.exchange.records import arrays_in, from_array_record, metrics_in
from fednnunet.exchange.rounding import ErrorFeedback, check_dtypes
from fednnunet.exchange.update_limit import RoundReference, UpdateLimit
from fednnunet.server.strategy.averaging import WEIGHT_KEY, check_layers
from fednnunet.server.strategy.layer_groups import LayerGroups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """A node's reply of a round, checked.

    Attributes:
        node: Flower id of the node.
        name: Name of the node.
        num_cases: Training cases of the node, one or more.
        metrics: Single finite numbers, ``num-examples`` among them.
        arrays: Layers that the node sent, by group; read-only.
        norm: Norm of the update of trained layers, see
            :meth:`~fednnunet.exchange.update_limit.RoundReference.validate_and_measure`.
        statistics_norm: The same of buffers, such as running statistics.
        reply: The message itself, with layers under the node's own names.
    """

    node: int
    name: str
    num_cases: int
    metrics: MetricRecord
    arrays: Mapping[str, np.ndarray]
    norm: float | None
    statistics_norm: float | None
    reply: Message


class ReplyValidator:
    """Checks the replies of a round; what cannot be used is refused with a reason that names the node.

    A node's layers are used if they are those that it was asked for, each once, in the shape of its network and the
    type that layers travel in, with finite values and an update that is not too large.

    Args:
        groups: Layers that each node exchanges.
        names: node id to the node's name.
        dtype: Type that layers are rounded to while they travel.
        limit: Decides which updates of trained layers are too large.
        statistics_limit: Decides it of buffers; None for no limit.

    Attributes:
        failures: node id to reason, of the replies of the last round that could not be used.
        accepted: node id to metrics, of the replies that were used.
        update_norms: node id to the norm of its update, of the replies that were used and have one.
    """

    def __init__(
        self,
        groups: LayerGroups,
        names: Mapping[int, str],
        dtype: ExchangeDtype,
        limit: UpdateLimit,
        statistics_limit: UpdateLimit | None = None,
    ) -> None:
        self.failures: dict[int, str] = {}
        self.accepted: dict[int, MetricRecord] = {}
        self.update_norms: dict[int, float] = {}
        self._groups, self._names, self._limit = groups, names, limit
        self._statistics_limit = statistics_limit or UpdateLimit(None)
        self._steps = StepFeedback(dtype, groups.buffers) if is_quantised(dtype) else None
        self._rounding = ErrorFeedback("float32" if is_quantised(dtype) else dtype, groups.buffers)
        self.begin_round((), {})

    def begin_round(self, nodes: Collection[int], arrays: Mapping[str, np.ndarray]) -> None:
        """Expect replies from ``nodes``, which are sent ``arrays`` (by group)."""
        self._expected = [node for node in self._groups.nodes if node in nodes]
        self._replied: set[int] = set()
        self._reference = RoundReference(arrays)
        self._dtypes = {
            group: self._rounding.dtype_of(group, dtype) if self._rounding.rounds else dtype
            for group, dtype in self._reference.dtypes.items()
        }

    def updates(self, server_round: int, replies: Iterable[Message]) -> Iterator[Update]:
        """Yield the replies that can be used; note the others in ``failures``.

        They come in the order of the nodes, whatever the order of arrival, so that sums are the same to the last bit.
        A reply that arrives before its turn is held until then. Updates that may be too large come last: they are
        compared with the others of their round.
        """
        self.failures, self.accepted, self.update_norms = {}, {}, {}
        norms: dict[int, float] = {}
        statistics: dict[int, float] = {}
        suspicious: dict[int, Update] = {}
        early: dict[int, Update | None] = {}  # None: there is nothing to wait for
        waiting = list(self._expected)
        for reply in replies:
            node = reply.metadata.src_node_id
            early.setdefault(node, None)
            try:
                update = self._validate(reply)
            except ProtocolError as error:
                self._refuse(server_round, node, str(error))
            else:
                if update.norm is not None:
                    norms[node] = update.norm
                if update.statistics_norm is not None:
                    statistics[node] = update.statistics_norm
                if self._is_suspicious(update):
                    suspicious[node] = update
                else:
                    early[node] = update
                del update  # of the size of a model: not kept while the next one is received
            del reply
            while waiting and waiting[0] in early:
                yield from self._accept(early.pop(waiting.pop(0)))
        for node in waiting:
            yield from self._accept(early.pop(node, None))
        for node in [node for node in self._expected if node in suspicious]:
            update = suspicious.pop(node)
            problem = self._limit.problem(update.norm, norms.values()) or self._statistics_limit.problem(
                update.statistics_norm, statistics.values()
            )
            if problem is None:
                yield from self._accept(update)
            else:
                self._refuse(server_round, node, f"node {update.name} {problem}")
        self._limit.end_round(self.update_norms.values())
        self._statistics_limit.end_round([statistics[node] for node in self.accepted if node in statistics])
        self.begin_round((), {})  # the reference has the size of a model

    def _is_suspicious(self, update: Update) -> bool:
        return self._limit.is_suspicious(update.norm) or self._statistics_limit.is_suspicious(update.statistics_norm)

    def _accept(self, update: Update | None) -> Iterator[Update]:
        if update is not None:
            self.accepted[update.node] = update.metrics
            if update.norm is not None and isfinite(update.norm):
                self.update_norms[update.node] = update.norm
            yield update

    def _refuse(self, server_round: int, node: int, problem: str) -> None:
        log.warning("round %d: %s", server_round, problem)
        self.failures.setdefault(node, problem)  # the first reason stands

    def _validate(self, reply: Message) -> Update:
        """What ``reply`` holds.

        Raises:
            ProtocolError: an error reply, or one that cannot be used; names the node.
        """
        node = reply.metadata.src_node_id
        name = self._names.get(node, str(node))
        where = f"node {name}"
        if node not in self._groups.nodes:
            raise ProtocolError(f"{where} is not part of this round")
        if node not in self._expected:
            raise ProtocolError(f"{where} was not asked to train in this round")
        if node in self._replied:
            raise ProtocolError(f"{where} has answered this round already")
        self._replied.add(node)
        metrics = _validate_metrics(reply, name)
        arrays = from_array_record(arrays_in(reply.content), where)
        by_group, norm, statistics = self.validate_arrays(node, self._decoded(node, arrays, where), where)
        cases: int = metrics[WEIGHT_KEY]  # type: ignore[assignment]
        return Update(node, name, cases, metrics, by_group, norm, statistics, reply)

    def _decoded(self, node: int, arrays: Mapping[str, np.ndarray], where: str) -> Mapping[str, np.ndarray]:
        """The arrays of a reply, where they are steps from what the node was sent: the layers that they lead to.

        Raises:
            ProtocolError: names ``where`` and the layer.
        """
        if self._steps is None:
            return arrays
        decoded = dict(arrays)
        for layer, group in self._groups.of_node(node).items():
            start = self._reference.array_of(group)
            if layer in arrays and start is not None and self._steps.is_step(group, start, start):
                decoded[layer] = decode_step(arrays[layer], start, self._steps.dtype, f"{where} sent layer {layer}")
        return decoded

    def validate_arrays(
        self, node: int, arrays: Mapping[str, np.ndarray], where: str
    ) -> tuple[dict[str, np.ndarray], float | None, float | None]:
        """Check the arrays of a reply.

        Returns:
            Arrays by group; norms of the update of trained layers and of buffers.

        Raises:
            ProtocolError: names ``where`` and the layer.
        """
        groups = self._groups.of_node(node)
        buffers = {layer: array for layer, array in arrays.items() if groups.get(layer) in self._groups.buffers}
        check_dtypes(arrays, self._rounding.dtype, where, buffers)
        check_layers(arrays, self._groups.shapes_of(node), where)
        for layer, array in arrays.items():
            dtype = self._dtypes.get(groups[layer], array.dtype)
            if array.dtype != dtype:
                raise ProtocolError(f"{where} sent layer {layer} as {array.dtype} instead of {dtype}")
        trained = {layer: array for layer, array in arrays.items() if layer not in buffers}
        norm = self._reference.validate_and_measure(trained, groups, where)
        statistics = self._reference.validate_and_measure(buffers, groups, where)
        by_group = {groups[layer]: array for layer, array in arrays.items()}
        for group, array in by_group.items():  # of a group that was not sent the first reply decides
            self._dtypes.setdefault(group, array.dtype)
        return by_group, norm, statistics


def _validate_metrics(reply: Message, name: str) -> MetricRecord:
    """The reply's metrics that are single finite numbers.

    Raises:
        ProtocolError: an error reply, or one without a number of cases.
    """
    if reply.has_error():
        raise ProtocolError(one_line(reply.error.reason or f"node {name} failed without a reason"))
    metrics = metrics_in(reply.content)
    cases = metrics.get(WEIGHT_KEY)
    if not isinstance(cases, int) or cases < 1:
        raise ProtocolError(f"node {name} sent a reply without its number of cases")
    return MetricRecord({k: v for k, v in metrics.items() if isinstance(v, int | float) and isfinite(v)})
