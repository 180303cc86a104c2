"""Flower strategies: AsymFedAvg, and no exchange at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fednnunet.errors import ConfigError, ProtocolError, one_line
from fednnunet.exchange.flower_internals import aggregate_metricrecords
from fednnunet.exchange.messages import EvaluateRequest, ExchangeDtype, Fold, Kind, TrainRequest
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.exchange.rounding import ErrorFeedback, check_dtypes
from fednnunet.server.strategy.averaging import StreamingAverage
from fednnunet.server.strategy.checkpoint import read_state, state_file, write_state
from fednnunet.server.strategy.layer_matching import Matching, Share, match_layers
from fednnunet.server.strategy.update_limit import RoundReference, UpdateLimit

log = logging.getLogger(__name__)

WEIGHT_KEY = "num-examples"
MIN_SAMPLED = 2
"""Nodes of a round, however small the fraction: one alone is no federation."""


@dataclass(frozen=True)
class Update:
    """A node's reply of a round, checked.

    Attributes:
        reply: as it came.
        node: its Flower id.
        name: of the node.
        metrics: single finite numbers, the number of training cases among them.
        arrays: its layers.
        weight: in a mean.
        norm: see :meth:`~fednnunet.server.strategy.update_limit.RoundReference.update_norm`.
    """

    reply: Message
    node: int
    name: str
    metrics: MetricRecord
    arrays: dict[str, np.ndarray]
    weight: float
    norm: float | None


class AsymFedAvg(Strategy):
    """Asymmetric federated averaging (paper, eq. 2-4 and algorithm 1).

    Layers that match are averaged, every other layer stays its node's own; only matching layers travel. On equal
    networks it is FedAvg. Server-side arrays are keyed by group of layers; each node gets its groups under its
    own layer names.

    Args:
        weighting: ``uniform`` (paper, eq. 3), or ``num_cases``: by training cases (FedAvg).
        matching: see :func:`~fednnunet.server.strategy.layer_matching.match_layers`.
        share: likewise.
        keep_local: parts of layer names, such as ``seg_layers`` or ``norm``; layers with one of them between their
            dots stay their node's own (personalised federated learning).
        proximal_mu: weight of FedProx's proximal term, mu / 2 times the squared distance of the exchanged layers from
            what the round began with (Li et al. 2020, eq. 2); 0 for none.
        fraction_train: of the nodes that train in a round, drawn anew for each, at least two (FedAvg's client
            fraction, McMahan et al. 2017).
        seed: of what is drawn.
        max_update_norm: refuse a node's layers when they have changed so many times as much as is usual in the last
            rounds; see :class:`~fednnunet.server.strategy.update_limit.UpdateLimit`. None for no limit.

    Attributes:
        failures: node id to reason, for the replies of the last round that could not be used.
        update_norms: node id to the norm of its update, relative to the weights, of those that were used.
    """

    def __init__(
        self,
        weighting: Literal["uniform", "num_cases"] = "uniform",
        matching: Matching = "name",
        share: Share = "all",
        keep_local: Sequence[str] = (),
        proximal_mu: float = 0.0,
        fraction_train: float = 1.0,
        seed: int = 0,
        max_update_norm: float | None = 10.0,
    ) -> None:
        if weighting not in ("uniform", "num_cases"):
            raise ValueError(f"weighting={weighting}: must be uniform or num_cases")
        self.weighting = weighting
        self.matching = matching
        self.share = share
        self.keep_local = frozenset(keep_local)
        self.proximal_mu = proximal_mu
        self.fraction_train = fraction_train
        self.seed = seed
        self.failures: dict[int, str] = {}
        self.update_norms: dict[int, float] = {}
        self._limit = UpdateLimit(max_update_norm)
        self._start = RoundReference({})
        self._names: Mapping[int, str] = {}
        self._layers: Mapping[int, Mapping[str, Sequence[int]]] = {}
        self._groups: dict[int, dict[str, str]] = {}
        self._average: StreamingAverage[int] | None = None
        self._trained: dict[int, int] = {}
        self._asked: set[int] = set()
        self._feedback = ErrorFeedback("float32")

    def prepare(
        self,
        layers: Mapping[int, Mapping[str, Sequence[int]]],
        names: Mapping[int, str],
        dtype: ExchangeDtype = "float32",
    ) -> None:
        """Match the networks of a run, before its first round.

        Args:
            layers: node id to layer to shape.
            names: node id to the node's name.
            dtype: that layers are rounded to while they travel.
        """
        self._layers, self._names = layers, names
        self._feedback = ErrorFeedback(dtype)
        self._groups = {
            node: {layer: group for layer, group in groups.items() if not self.keep_local & set(layer.split("."))}
            for node, groups in match_layers(layers, self.matching, self.share).items()
        }
        self._check_kept(layers)
        self._average = StreamingAverage(layers, self._groups)
        for node, fraction in self.shared_fraction().items():
            log.info("node %s shares %.0f %% of its parameters", node, 100 * fraction)

    def _check_kept(self, layers: Mapping[int, Mapping[str, Sequence[int]]]) -> None:
        parts = {part for names in layers.values() for name in names for part in name.split(".")}
        unknown = sorted(self.keep_local - parts)
        if unknown:
            raise ConfigError(
                f"strategy.keep_local: no layer has the part {unknown[0]}; there are, for example, "
                f"{', '.join(sorted(part for part in parts if not part.isdigit()))}"
            )

    def shared_fraction(self) -> dict[str, float]:
        """Node name to the share of its parameters that is averaged with others."""
        return {
            self._names[node]: sum(prod(layers[name]) for name in self._groups[node])
            / sum(prod(shape) for shape in layers.values())
            for node, layers in self._layers.items()
        }

    def averages_all_layers(self, nodes: Sequence[int]) -> bool:
        """Whether every layer of each of ``nodes`` is averaged with that of the others."""
        mine = self._groups[nodes[0]]
        return all(self._groups[node] == mine and len(mine) == len(self._layers[node]) for node in nodes)

    def begin_fold(self, trained: Mapping[int, int], update_norms: Iterable[Collection[float]] = ()) -> None:
        """A fold is trained; what the rounds of another have left is forgotten.

        Args:
            trained: node id to the last round of it that the node was in; 0 where there is none.
            update_norms: of the rounds that an interrupted run has behind it, in their order.
        """
        self._trained = dict(trained)
        self._limit.begin_fold(update_norms)
        self._feedback = ErrorFeedback(self._feedback.dtype)

    def trained(self, node: int) -> int:
        """The last round of this fold that ``node`` was in."""
        return self._trained.get(node, 0)

    def sample(self, fold: Fold, server_round: int) -> list[int]:
        """Nodes that train in a round; depends on seed, fold, round and the nodes' names alone."""
        count = max(MIN_SAMPLED, round(self.fraction_train * len(self._groups)))
        if count >= len(self._groups):
            return list(self._groups)
        by_name = sorted(self._groups, key=self._names.__getitem__)
        rng = np.random.default_rng(list(f"{self.seed}/{fold}/{server_round}".encode()))
        drawn = {by_name[place] for place in rng.choice(len(by_name), count, replace=False)}
        return [node for node in self._groups if node in drawn]

    @property
    def groups(self) -> set[str]:
        """All groups of layers that are averaged."""
        return {group for groups in self._groups.values() for group in groups.values()}

    def layers_of(self, node: int) -> list[str]:
        """Layers that ``node`` sends and receives."""
        return list(self._groups[node])

    def group_of(self, node: int, layer: str) -> str:
        """Group in which ``layer`` of ``node`` is averaged."""
        return self._groups[node][layer]

    def arrays_for(self, node: int, arrays: ArrayRecord) -> ArrayRecord:
        """What ``node`` gets of the averages, under its own layer names; nothing is copied."""
        mine = self._groups[node]
        return ArrayRecord({layer: arrays[group] for layer, group in mine.items() if group in arrays})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request per node drawn for this round, with the averages it shares in.

        ``config`` has the fold, ``epochs`` of a round, and ``nodes`` where certain ones are to be asked.
        """
        nodes: list[int] = config.get("nodes") or self.sample(fold_of(config), server_round)  # type: ignore[assignment]
        self._asked = set(nodes)
        self._start = RoundReference(from_array_record(arrays, "the server"))
        return [
            _message(
                Kind.TRAIN,
                node,
                TrainRequest(
                    fold=fold_of(config),
                    server_round=server_round,
                    trained=self.trained(node),
                    epochs=int(config.get("epochs", 1)),  # type: ignore[arg-type]
                    layers=self.layers_of(node),
                    dtype=self._feedback.dtype,
                    proximal_mu=self.proximal_mu,
                ),
                self.arrays_for(node, arrays),
            )
            for node in nodes
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add replies to the running sums as they come; the averages keyed by group, and mean metrics."""
        average = self._new_average()
        used = self._take(server_round, replies, average, lambda u: average.add_checked(u.node, u.arrays, u.weight))
        if not used:
            return None, None
        return self._rounded(average.result()), _mean_metrics(used)

    def _rounded(self, means: Mapping[str, np.ndarray]) -> ArrayRecord:
        """What nodes are sent of ``means``; layer by layer, so that hardly more than that is in memory."""
        if not self._feedback.rounds:
            return to_array_record(means)
        record = ArrayRecord()
        for group, mean in means.items():
            record.update(to_array_record(self._feedback.encoded({group: mean}, "the server")))
        return record

    def _new_average(self) -> StreamingAverage[int]:
        """The sums, empty for a new round."""
        assert self._average is not None, "prepare() comes before the first round"
        feedback = self._feedback
        self._average.reset(
            {
                group: feedback.dtype_of(dtype) if feedback.rounds else dtype
                for group, dtype in self._start.dtypes.items()
            }
        )
        for node in self._groups.keys() - self._asked:
            self._average.skip(node)
        return self._average

    def _take(
        self,
        server_round: int,
        replies: Iterable[Message],
        average: StreamingAverage[int],
        take: Callable[[Update], None],
    ) -> list[MetricRecord]:
        """Give ``take`` every reply that can be used, and note in ``failures`` what is refused.

        Updates that may be too large come last, in the order of the nodes.

        Returns:
            Metrics of the replies that are used.
        """
        self.failures, self.update_norms = {}, {}
        used: list[MetricRecord] = []
        doubtful: dict[int, Update] = {}
        norms: dict[int, float] = {}

        def use(update: Update) -> None:
            take(update)
            used.append(update.metrics)
            self._trained[update.node] = server_round
            if update.norm is not None and isfinite(update.norm):
                self.update_norms[update.node] = update.norm

        def refuse(node: int, problem: str) -> None:
            log.warning("round %d: %s", server_round, problem)
            self.failures[node] = problem

        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                update = self._checked(reply, average)
            except ProtocolError as error:
                refuse(node, str(error))
                continue
            if update.norm is not None:
                norms[node] = update.norm
            if self._limit.is_suspicious(update.norm):
                average.skip(node)
                doubtful[node] = update
            else:
                use(update)
        for node in sorted(doubtful):
            problem = self._limit.problem(norms[node], norms.values())
            if problem is None:
                use(doubtful[node])
            else:
                refuse(node, f"node {doubtful[node].name} {problem}")
        self._limit.end_round(self.update_norms.values())
        self._start = RoundReference({})  # its arrays are the size of a model
        return used

    def _checked(self, reply: Message, average: StreamingAverage[int]) -> Update:
        """What ``reply`` holds.

        Raises:
            ProtocolError: an error reply, or one that cannot be averaged; names the node.
        """
        node = reply.metadata.src_node_id
        name = self._names.get(node, str(node))
        where = f"node {name}"
        if node in self._groups and node not in self._asked:
            raise ProtocolError(f"{where} was not asked to train in this round")
        metrics = _checked_metrics(reply, name)
        weight = float(metrics[WEIGHT_KEY]) if self.weighting == "num_cases" else 1.0  # type: ignore[arg-type]
        arrays = from_array_record(reply.content.array_records.get("arrays", ArrayRecord()), where)
        check_dtypes(arrays, self._feedback.dtype, where)
        norm = average.check(node, arrays, weight, where, self._start)
        return Update(reply, node, name, metrics, arrays, weight, norm)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request per node to load the last averages, write the final checkpoint and score."""
        return [
            _message(
                Kind.EVALUATE,
                node,
                EvaluateRequest(fold=fold_of(config), server_round=server_round, trained=self.trained(node)),
                self.arrays_for(node, arrays),
            )
            for node in self._groups
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Scores are tables of cases, which the server app collects; there is nothing to average."""
        for reply in replies:
            if reply.has_error():
                self.failures[reply.metadata.src_node_id] = reply.error.reason or "failed"
        return None

    # state of an interrupted run -----------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        """Whether anything is remembered over rounds.

        An average is not: its nodes can be asked again. What rounding leaves over is, and so are averages of layers
        that the nodes of the last round do not have.
        """
        return self._feedback.rounds or self.fraction_train < 1

    def save(self, folder: Path, fold: Fold, server_round: int, arrays: ArrayRecord) -> None:
        """Write what is remembered and the arrays of the next round; nothing where nothing is remembered."""
        if self.has_state:
            state = {"arrays": from_array_record(arrays, "the server"), **self._state()}
            flat = {f"{place}/{name}": array for place, held in state.items() for name, array in held.items()}
            write_state(folder, fold, server_round, flat)

    def remembers(self, folder: Path, fold: Fold, server_round: int) -> bool:
        """Whether an interrupted run can go on from ``server_round``; the nodes may be a round ahead."""
        return not self.has_state or state_file(folder, fold, server_round).is_file()

    def restore(self, folder: Path, fold: Fold, server_round: int) -> ArrayRecord | None:
        """The arrays after ``server_round`` of an interrupted run; None to ask the nodes for the round again."""
        if not self.has_state:
            return None
        state: dict[str, dict[str, np.ndarray]] = {"arrays": {}}
        for key, array in read_state(folder, fold, server_round).items():
            place, _, name = key.partition("/")
            state.setdefault(place, {})[name] = array
        arrays = to_array_record(state.pop("arrays"))
        self._set_state(state)
        return arrays

    def _state(self) -> dict[str, dict[str, np.ndarray]]:
        """Named arrays, by the place they are kept in."""
        return {"residuals": self._feedback.residuals}

    def _set_state(self, state: Mapping[str, dict[str, np.ndarray]]) -> None:
        self._feedback.residuals = state.get("residuals", {})

    def summary(self) -> None:
        """Log the configuration."""
        log.info("AsymFedAvg: weighting=%s matching=%s share=%s", self.weighting, self.matching, self.share)


class NoExchange(AsymFedAvg):
    """Every node trains alone: the same rounds, and nothing is sent (baselines local and centralized)."""

    def __init__(self) -> None:
        super().__init__()

    def prepare(
        self,
        layers: Mapping[int, Mapping[str, Sequence[int]]],
        names: Mapping[int, str],
        dtype: ExchangeDtype = "float32",
    ) -> None:
        """No layer matches another."""
        self._layers, self._names = layers, names
        self._groups = {node: {} for node in layers}
        self._average = StreamingAverage(layers, self._groups)


def fold_of(config: ConfigRecord) -> Fold:
    """The fold that the server app trains, which it tells a strategy in ``config``."""
    fold = config.get("fold", 0)
    return "all" if fold == "all" else int(fold)  # type: ignore[arg-type]


def _message(kind: Kind, node: int, body: TrainRequest | EvaluateRequest, arrays: ArrayRecord) -> Message:
    settings = ConfigRecord({"body": body.model_dump_json(), "server-round": body.server_round})
    content = RecordDict({"config": settings})
    if arrays:
        content["arrays"] = arrays
    return Message(content, dst_node_id=node, message_type=kind.value)


def _checked_metrics(reply: Message, name: str) -> MetricRecord:
    """The reply's metrics that are single finite numbers.

    Raises:
        ProtocolError: an error reply, or one without a number of cases.
    """
    if reply.has_error():
        raise ProtocolError(one_line(reply.error.reason or f"node {name} failed without a reason"))
    metrics = reply.content.metric_records.get("metrics", MetricRecord())
    cases = metrics.get(WEIGHT_KEY)
    if not isinstance(cases, int) or cases < 1:
        raise ProtocolError(f"node {name} sent a reply without its number of cases")
    return MetricRecord({k: v for k, v in metrics.items() if isinstance(v, int | float) and isfinite(v)})


def same_metrics(replies: Sequence[MetricRecord]) -> list[MetricRecord]:
    """Of every reply the metrics that all have: a pseudo-Dice may be undefined at one node."""
    common = set.intersection(*(set(metrics) for metrics in replies))
    return [MetricRecord({key: metrics[key] for key in sorted(common)}) for metrics in replies]


def _mean_metrics(replies: Sequence[MetricRecord]) -> MetricRecord:
    """Mean by training cases of the metrics that every node has."""
    records = [RecordDict({"metrics": metrics}) for metrics in same_metrics(replies)]
    return aggregate_metricrecords(records, WEIGHT_KEY)
