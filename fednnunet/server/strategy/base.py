"""What every strategy has in common, and the few methods that a new one writes."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from fednnunet.exchange.messages import ExchangeDtype, Fold, Kind, TrainRequest
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.exchange.update_limit import UpdateLimit
from fednnunet.server.node_messages import build_request
from fednnunet.server.strategy.averaging import StreamingAverage, mean_metrics
from fednnunet.server.strategy.checkpoint import State, has_checkpoint, read_checkpoint, write_checkpoint
from fednnunet.server.strategy.downlink import Downlink
from fednnunet.server.strategy.layer_groups import LayerGroups, check_groups
from fednnunet.server.strategy.layer_matching import Shapes, match_layers
from fednnunet.server.strategy.reply_validation import ReplyValidator, Update
from fednnunet.server.strategy.row_average import Annotated, RowAverage
from fednnunet.server.strategy.sampling import NodeSampler
from fednnunet.server.strategy.secure_average import OpenSums

log = logging.getLogger(__name__)

T = TypeVar("T")


class Strategy(flower.Strategy):
    """How the server combines what nodes send.

    A new strategy writes one method, :meth:`aggregate`. It overrides :meth:`match_layers` to say which layers are
    exchanged, and :meth:`state` with :meth:`load_state` if it remembers arrays over rounds (momenta). The rest is
    composed here: sampling of nodes, validation of replies, rounding of layers while they travel, checkpoints, and the
    means of what :meth:`aggregate` is not given: buffers (batch normalization's running statistics follow images, not
    an optimizer, so that a step with momentum could make a variance negative, and a median would be of no batch), and
    heads whose classes are annotated by some nodes alone (:class:`~fednnunet.server.strategy.row_average.RowAverage`).
    See ``docs/how-to/add-a-strategy.md``.

    Args:
        keep_local: Parts of layer names, such as ``seg_layers`` or ``norm``; layers with one of them between their
            dots stay their node's own (personalised federated learning).
        fraction_train: Fraction of the nodes that train in a round, drawn anew for each, at least two nodes
            (FedAvg's client fraction, McMahan et al. 2017).
        seed: Random seed of the draw.
        max_update_norm: Refuse a node's layers if they changed this many times as much as is usual in the last rounds,
            see :class:`~fednnunet.exchange.update_limit.UpdateLimit`; None for no limit.

    Attributes:
        groups: Layers that each node exchanges, and the group in which each is combined.
        proximal_mu: Weight of FedProx's proximal term at the nodes, 0 for none.
        num_cases: Node id to its number of training cases, of all folds; set before the first round.
        open_sums: Asks the nodes to open the sums of a round, set before it; for strategies that sum securely.
    """

    proximal_mu: float = 0.0
    num_cases: Mapping[int, int] = {}
    open_sums: OpenSums | None = None

    def __init__(
        self,
        keep_local: Sequence[str] = (),
        fraction_train: float = 1.0,
        seed: int = 0,
        max_update_norm: float | None = 10.0,
    ) -> None:
        if isinstance(keep_local, str):
            raise ValueError(f"keep_local={keep_local}: must be a list, such as [{keep_local}]")
        self._keep_local = tuple(keep_local)
        self._sampler = NodeSampler(fraction_train, seed)
        self._limit = UpdateLimit(max_update_norm)
        self._statistics_limit = UpdateLimit(max_update_norm, statistics=True)
        self._buffers = StreamingAverage()
        self._last_rounds: dict[int, int] = {}
        self._start: Mapping[str, np.ndarray] = {}
        self._compose(LayerGroups({}, {}), {}, "float32")

    # what a strategy writes ------------------------------------------------------------------------------

    @abstractmethod
    def aggregate(
        self, server_round: int, arrays: Mapping[str, np.ndarray], updates: Iterable[Update]
    ) -> Mapping[str, np.ndarray]:
        """New arrays from a round's updates; neither has what is set aside: buffers, and heads by rows.

        Args:
            server_round: Counted from 1.
            arrays: What nodes were sent at the start of the round, by group, in the type that it travelled in.
                Read-only.
            updates: Valid replies, one at a time, in the order of the nodes; none if all failed. Each is as large as
                a model: add it up, and forget it. One that arrives before its turn is held until then.

        Returns:
            New arrays by group; groups that are not in it keep what they have.
        """

    def weight(self, update: Update) -> float:
        """How much a node counts in the means of what is set aside: its training cases (FedAvg)."""
        return float(update.num_cases)

    def match_layers(self, layers: Mapping[int, Shapes]) -> Mapping[int, Mapping[str, str]]:
        """Layers that nodes exchange: node id to layer to group; all that every node has, under the same name.

        Args:
            layers: node id to layer to shape, of whole networks.
        """
        return match_layers(layers)

    def state(self) -> State:
        """Named arrays that the next round needs, by what they are; an empty kind says that there will be some.

        A kind is any word without "/" but ``arrays`` and ``residuals``, which are written for every strategy.
        """
        return {}

    def load_state(self, state: State) -> None:
        """Continue with what :meth:`state` returned, without kinds that had no array; with {} as a fold starts."""

    # before training -------------------------------------------------------------------------------------

    def prepare(
        self,
        layers: Mapping[int, Shapes],
        names: Mapping[int, str],
        dtype: ExchangeDtype = "float32",
        buffers: Mapping[int, Collection[str]] | None = None,
        annotated: Annotated | None = None,
    ) -> None:
        """Match the networks of a run, before its first round.

        Args:
            layers: node id to layer to shape.
            names: node id to the node's name.
            dtype: Type that trained layers are rounded to while they travel.
            buffers: node id to those of its layers that no optimizer trains.
            annotated: node id to those of its layers whose rows are classes, and which of these it annotates.

        Raises:
            ConfigError: :meth:`match_layers` returns groups that cannot be combined, or no layer has one of the parts
                in ``keep_local``.
        """
        matched = self.match_layers(layers)
        check_groups(layers, matched, names, type(self).__name__, buffers)
        groups = LayerGroups(layers, matched, self._keep_local, buffers)
        self._compose(groups, {node: names[node] for node in layers}, dtype)
        self._rows = RowAverage(groups, annotated or {}, names)
        self.log_shared_fraction()

    def _compose(self, groups: LayerGroups, names: Mapping[int, str], dtype: ExchangeDtype) -> None:
        self.groups, self._names = groups, names
        self._rows = RowAverage(groups, {}, names)
        self._downlink = Downlink(dtype, groups.buffers)
        self._validator = self.build_validator(dtype)

    def build_validator(self, dtype: ExchangeDtype) -> ReplyValidator:
        """What checks the replies of the run's rounds."""
        return ReplyValidator(self.groups, self._names, dtype, self._limit, self._statistics_limit)

    def shared_fraction(self) -> dict[str, float]:
        """Node name to the fraction of its parameters that it exchanges."""
        return {self._names[node]: fraction for node, fraction in self.groups.shared_fraction().items()}

    def log_shared_fraction(self) -> None:
        """Log how much each node exchanges."""
        for name, fraction in self.shared_fraction().items():
            log.info("node %s shares %.0f %% of its parameters", name, 100 * fraction)

    def begin_fold(self, last_rounds: Mapping[int, int], update_norms: Iterable[Collection[float]] = ()) -> None:
        """Forget what the rounds of another fold left.

        Args:
            last_rounds: node id to the last round of this fold that the node was in; 0 if there is none.
            update_norms: Norms of the rounds that an interrupted run has finished, in their order.
        """
        self._last_rounds = dict(last_rounds)
        self._limit.begin_fold(update_norms)
        self._statistics_limit.begin_fold()
        self._downlink = Downlink(self._downlink.dtype, self.groups.buffers)
        self.load_state({})

    # rounds ----------------------------------------------------------------------------------------------

    def sample(self, fold: Fold, server_round: int) -> list[int]:
        """Nodes that train in a round."""
        return self._sampler.sample(self._names, fold, server_round)

    def last_round(self, node: int) -> int:
        """The last round of this fold that ``node`` was in; 0 if there is none."""
        return self._last_rounds.get(node, 0)

    @property
    def failures(self) -> dict[int, str]:
        """Node id to reason, of the replies of the last round that could not be used."""
        return self._validator.failures

    @property
    def update_norms(self) -> dict[int, float]:
        """Node id to the norm of its update, relative to the weights, of the replies that were used."""
        return self._validator.update_norms

    @property
    def round_means(self) -> Mapping[str, float | None]:
        """Figures of the last round that are known as means over its nodes alone, as in ``round_means.csv``."""
        return {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request per node of the round, with the arrays of the groups it is in.

        Args:
            server_round: Counted from 1.
            arrays: By group.
            config: ``fold``, ``epochs`` per round, and ``nodes`` if these ones are to train.
            grid: Not used: the caller sends the messages.
        """
        fold: Fold = config.get("fold", 0)  # type: ignore[assignment]
        nodes: list[int] = config.get("nodes") or self.sample(fold, server_round)  # type: ignore[assignment]
        self._start = from_array_record(arrays, "the server")
        self.begin_round(nodes, self._start)
        fields = {"fold": fold, "server_round": server_round, "epochs": int(config.get("epochs", 1))}  # type: ignore[arg-type]
        requests = []
        for node in nodes:
            sent, references = self.shorten(node, self.arrays_for(node, arrays))
            body = self.train_request(
                node,
                **fields,
                trained=self.last_round(node),
                dtype=self._downlink.dtype,
                references=references,
                proximal_mu=self.proximal_mu,
            )
            requests.append(build_request(Kind.TRAIN, node, body, sent))
        self._downlink.begin_round(nodes)
        return requests

    def arrays_for(self, node: int, arrays: ArrayRecord) -> ArrayRecord:
        """Arrays that ``node`` is sent at the start of a round, under its own layer names."""
        return self.groups.arrays_for(node, arrays)

    def shorten(self, node: int, whole: ArrayRecord) -> tuple[ArrayRecord, dict[str, str]]:
        """Layers for ``node``, as steps where it was sent what they start from, and what that was."""
        return self._downlink.shorten(node, whole, self.groups.of_node(node))

    def begin_round(self, nodes: Collection[int], arrays: Mapping[str, np.ndarray]) -> None:
        """Expect replies from ``nodes``, which are sent their part of ``arrays`` (by group)."""
        self._validator.begin_round(nodes, arrays)

    def train_request(self, node: int, **fields: Any) -> TrainRequest:
        """Request of the round for ``node``; ``fields`` are those that do not depend on layers."""
        return TrainRequest(layers=self.groups.layers_of(node), **fields)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """New arrays by group, as they are sent, and mean metrics; None where no reply could be used."""
        start, self._start = self._start, {}  # of the size of a model
        self._rows.reset(start)
        updates = self.set_aside(self._validator.updates(server_round, replies))
        arrays = self.aggregate(server_round, self.to_aggregate(start), updates)
        deque(updates, maxlen=0)  # those that it did not read
        accepted = self._validator.accepted
        if not accepted:
            return None, None
        self._last_rounds |= dict.fromkeys(accepted, server_round)
        record = self._downlink.to_record({**arrays, **self._buffers.result(), **self._rows.result()}, start)
        return record, mean_metrics(list(accepted.values()))

    def to_aggregate(self, arrays: Mapping[str, T]) -> dict[str, T]:
        """The arrays, by group, without those that are set aside."""
        aside = self.groups.buffers | self._rows.heads
        return {group: array for group, array in arrays.items() if group not in aside}

    def set_aside(self, updates: Iterator[Update]) -> Iterator[Update]:
        """The updates without their buffers and heads, which go into means."""
        self._buffers.reset()
        for update in updates:
            buffers = {group: array for group, array in update.arrays.items() if group in self.groups.buffers}
            self._buffers.add(buffers, self.weight(update))
            self._rows.add(update.node, update.arrays, self.weight(update))
            yield replace(update, arrays=self.to_aggregate(update.arrays))
            del update, buffers  # of the size of a model: not kept while the next one is received

    # an interrupted run ----------------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        """Whether a round depends on more than what the nodes of the last one have.

        An average does not: its nodes can be asked again. What rounding left over is needed, averages of layers that
        the nodes of the last round do not have, rows of heads that none of them annotates, and what the strategy itself
        remembers.
        """
        return self._downlink.remembers or self._sampler.fraction < 1 or bool(self._rows.heads or self.state())

    def save(self, folder: Path, fold: Fold, server_round: int, arrays: ArrayRecord) -> None:
        """Write the state after a round, and the arrays of the next; nothing if there is no state.

        Raises:
            ValueError: :meth:`state` has a kind of a name that it must not have.
        """
        if self.has_state:
            held = {"arrays": from_array_record(arrays, "the server"), "residuals": self._downlink.residuals}
            state = self.state()
            for kind in state:
                if kind in held or "/" in kind:
                    raise ValueError(
                        f"{type(self).__name__}.state: {kind!r} must not contain / nor be {' or '.join(held)}"
                    )
            write_checkpoint(folder, fold, server_round, {**held, **state})

    def remembers(self, folder: Path, fold: Fold, server_round: int) -> bool:
        """Whether an interrupted run can continue after ``server_round``: what it needs is there, and undamaged."""
        return not self.has_state or has_checkpoint(folder, fold, server_round)

    def restore(self, folder: Path, fold: Fold, server_round: int) -> ArrayRecord | None:
        """The arrays after ``server_round`` of an interrupted run; None to ask the nodes for the round again."""
        if not self.has_state:
            return None
        state = read_checkpoint(folder, fold, server_round)
        arrays = to_array_record(state.pop("arrays", {}))
        self._downlink.residuals = state.pop("residuals", {})
        self.load_state(state)
        return arrays

    # Flower's evaluation is not used: nodes score cases, which is a phase of its own (phases/evaluate.py). ---

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No message."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """No metric."""
        return None

    def summary(self) -> None:
        """Log the strategy and its options, as Flower does before the first round."""
        options = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "groups"}
        log.info("%s: %s", type(self).__name__, options)
