"""AsymFedAvg over sums: the server never sees the layers of a single node (``privacy=secure``)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import ExchangeDtype, TrainReply, TrainRequest
from fednnunet.exchange.records import record_of
from fednnunet.exchange.update_limit import RoundReference, UpdateLimit
from fednnunet.privacy.ring import FixedPoint
from fednnunet.privacy.secure_sum import SumRules
from fednnunet.server.node_messages import parse_reply
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.layer_matching import Shapes
from fednnunet.server.strategy.reply_validation import Update
from fednnunet.server.strategy.secure_average import (
    MaskedReplyValidator,
    SecureAverage,
    VoidRound,
    classes_of,
)

log = logging.getLogger(__name__)


class SecureAsymFedAvg(AsymFedAvg):
    """Asymmetric federated averaging of masked layers.

    Its means are those of :class:`~fednnunet.server.strategy.asym_fedavg.AsymFedAvg`, up to the rounding of
    :class:`~fednnunet.privacy.ring.FixedPoint`. A layer that fewer nodes have than may be summed stays its node's own;
    counters of batch normalization, which are integers, travel as they are.

    Args:
        colluding: Nodes that may help a curious server.
        min_group: Fewest nodes over which a layer is averaged.
        limit: Largest size of a weight.
        options: See :class:`~fednnunet.server.strategy.asym_fedavg.AsymFedAvg`; ``max_update_norm`` is about averages.
    """

    def __init__(self, colluding: int = 1, min_group: int = 3, limit: float = 64.0, **options: Any) -> None:
        super().__init__(**options)
        self.rules, self.limit = SumRules(colluding, min_group), limit
        self._secure = SecureAverage([], self.rules, limit)
        self._counters: frozenset[str] = frozenset()
        self._norm: float | None = None

    @property
    def most_cases(self) -> int | None:
        """Number of cases that a weight of 1 stands for; None where all nodes have it."""
        return max(self.num_cases.values()) if self.weighting == "num_cases" else None

    def match_layers(self, layers: Mapping[int, Shapes]) -> Mapping[int, Mapping[str, str]]:
        """Layers that match at enough nodes for a sum.

        Raises:
            ConfigError: there is none.
        """
        matched = super().match_layers(layers)
        members = Counter(group for groups in matched.values() for group in groups.values())
        kept = {
            node: {layer: g for layer, g in groups.items() if members[g] >= self.rules.fewest_arrivals(members[g])}
            for node, groups in matched.items()
        }
        if not any(kept.values()):
            raise ConfigError(
                f"privacy.secure_sums: no layer is at {self.rules.fewest_arrivals(len(layers))} of the {len(layers)} "
                "nodes, the fewest that are added up; have more nodes take part, or lower privacy.secure_sums.min_group"
            )
        return kept

    def log_shared_fraction(self) -> None:
        """Also how exact the averages are."""
        super().log_shared_fraction()
        members = len(self.groups.nodes)
        error = FixedPoint(members, self.limit).error_bound(members, members)
        log.info(
            "layers are summed securely over at least %d of %d nodes; with equal weights averages err by at most %.1e",
            self.rules.fewest_arrivals(members),
            members,
            error,
        )

    def build_validator(self, dtype: ExchangeDtype) -> MaskedReplyValidator:
        """What checks masked replies."""
        return MaskedReplyValidator(self.groups, self._names, dtype, UpdateLimit(None))

    def begin_round(self, nodes: Collection[int], arrays: Mapping[str, np.ndarray]) -> None:
        """Put the nodes' layers into classes, and expect masked replies."""
        super().begin_round(nodes, arrays)
        self._counters = frozenset(group for group, array in arrays.items() if array.dtype.kind in "iu")
        classes = classes_of(self.groups, self._names, nodes, self._counters, self.rules)
        self._secure = SecureAverage(classes, self.rules, self.limit)
        assert isinstance(self._validator, MaskedReplyValidator)
        self._validator.classes = classes

    def train_request(self, node: int, **fields: Any) -> TrainRequest:
        """The request, with the classes of the round in the node's own layer names."""
        classes = self._secure.requests(self.groups, node, self._names[node])
        layers = self._layers_in_round(node)
        return TrainRequest(layers=layers, classes=classes, most_cases=self.most_cases, **fields)

    def arrays_for(self, node: int, arrays: ArrayRecord) -> ArrayRecord:
        """Those of the round's classes: masks depend on them, and nodes take no others."""
        sent = super().arrays_for(node, arrays)
        return record_of({layer: sent[layer] for layer in self._layers_in_round(node) if layer in sent})

    def _layers_in_round(self, node: int) -> list[str]:
        """Layers of ``node`` in a class of the round, and counters, in the node's order."""
        classes = self._secure.requests(self.groups, node, self._names[node])
        masked = {layer for one in classes for layer in one.layers}
        return [
            layer for layer, group in self.groups.of_node(node).items() if layer in masked or group in self._counters
        ]

    def set_aside(self, updates: Iterator[Update]) -> Iterator[Update]:
        """Nothing: buffers are masked as all layers are, and the configuration refuses heads by rows."""
        assert not self._rows.heads, "refused with the configuration"
        self._buffers.reset()
        return updates

    def aggregate(
        self, server_round: int, arrays: Mapping[str, np.ndarray], updates: Iterable[Update]
    ) -> Mapping[str, np.ndarray]:
        """Means by group, once the nodes have opened the sums.

        Raises:
            VoidRound: the sums cannot be opened.
        """
        self._average.reset()
        fold = None
        for update in updates:
            body = parse_reply(TrainReply, update.reply, update.name)
            fold = body.fold
            weight = update.num_cases / self.most_cases if self.most_cases else 1.0
            self._secure.add(update.name, update.arrays, weight, body.shares)
            counters = {group: array for group, array in update.arrays.items() if group in self._counters}
            self._average.add(counters, self.weight(update))
            del update  # of the size of a model: not kept while the next one is received
        if fold is None:
            return {}
        assert self.open_sums is not None, "set before the round"
        means = self._secure.result(fold, server_round, self.open_sums)
        self._check_update(arrays, means)
        return {**means, **self._average.result()}

    def _check_update(self, arrays: Mapping[str, np.ndarray], means: Mapping[str, np.ndarray]) -> None:
        """Refuse averages that have changed too much: one node's layers are wrong, of which nobody knows whose.

        Raises:
            VoidRound: says how much is usual.
        """
        trained = self.to_aggregate(means)
        reference = RoundReference({group: array for group, array in arrays.items() if group in trained})
        self._norm = reference.validate_and_measure(trained, {group: group for group in trained}, "the sum")
        problem = self._limit.problem(self._norm, [] if self._norm is None else [self._norm])
        if problem is not None:
            raise VoidRound(f"one node or more {problem}")
        self._limit.end_round([] if self._norm is None else [self._norm])

    @property
    def round_means(self) -> Mapping[str, float | None]:
        """Mean figures of the last round over its nodes, and the norm of the update of its averages."""
        return {**self._secure.figures, "update_norm": self._norm}

    @property
    def has_state(self) -> bool:
        """A sum is opened once: its nodes cannot be asked again."""
        return True
