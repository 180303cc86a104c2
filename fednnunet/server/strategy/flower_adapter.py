"""Flower's own strategies, on networks that are the same at every node."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.quantisation import is_quantised
from fednnunet.exchange.records import arrays_in, from_array_record, metrics_in, record_of, to_array_record
from fednnunet.exchange.rounding import decode
from fednnunet.server.strategy.averaging import same_metrics
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.checkpoint import State
from fednnunet.server.strategy.layer_matching import Shapes
from fednnunet.server.strategy.reply_validation import Update
from fednnunet.server.strategy.row_average import Annotated


class FlowerStrategy(Strategy):
    """Lets a strategy of ``flwr.serverapp.strategy`` aggregate what nodes send.

    It is given valid replies only, in a fixed order. All replies of a round are held at once, as these strategies
    expect. What it remembers over rounds (momenta, the last arrays) is written to the run's folder after each, so that
    an interrupted run continues with it.

    Args:
        strategy: Strategy of Flower, made by Hydra. Its own ``fraction_train`` is not used.
        options: See :class:`~fednnunet.server.strategy.base.Strategy`.
    """

    def __init__(self, strategy: flower.Strategy, **options: Any) -> None:
        self.strategy = strategy
        self._unused = copy.deepcopy(strategy)
        super().__init__(**options)

    def prepare(
        self,
        layers: Mapping[int, Shapes],
        names: Mapping[int, str],
        dtype: ExchangeDtype = "float32",
        buffers: Mapping[int, Collection[str]] | None = None,
        annotated: Annotated | None = None,
    ) -> None:
        """Match the networks of a run.

        Raises:
            ConfigError: nodes have different networks, or there are fewer nodes than the strategy needs.
        """
        super().prepare(layers, names, dtype, buffers, annotated)
        kind = type(self.strategy).__name__
        min_nodes = getattr(self.strategy, "min_available_nodes", 1)
        if len(layers) < min_nodes:  # it would wait for them for ever
            raise ConfigError(f"{kind} needs {min_nodes} nodes; there are {len(layers)}")
        first, *others = layers
        for other in others:
            if layers[first] != layers[other]:
                raise ConfigError(
                    f"{kind} needs the same network at every node; {names[first]} and {names[other]} have different "
                    "ones: set strategy.plan_from=federated, the same gpu_memory and model, or use strategy=asym"
                )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Show the strategy the arrays that the round starts with; the requests are those of every strategy."""
        nodes: Any = _Nodes(self.groups.nodes)  # its messages are not sent
        list(self.strategy.configure_train(server_round, self._in_order(arrays), ConfigRecord(), nodes))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate(
        self, server_round: int, arrays: Mapping[str, np.ndarray], updates: Iterable[Update]
    ) -> Mapping[str, np.ndarray]:
        """The strategy's own; results have the types of what it is given."""
        shown = {update.node: self._shown(update) for update in updates}
        replies = [shown[node] for node in sorted(shown)]
        if not replies:
            return {}
        if not arrays_in(replies[-1].content):  # all layers are set aside; it may need one
            return {}
        dtypes = {layer: array.dtype for layer, array in arrays_in(replies[-1].content).items()}
        # It aggregates nothing if one node has a metric that another lacks.
        metrics = same_metrics([metrics_in(reply.content) for reply in replies])
        for reply, common in zip(replies, metrics, strict=True):
            reply.content["metrics"] = common
        aggregated, _ = self.strategy.aggregate_train(server_round, replies)
        return {layer: array.numpy().astype(dtypes[layer], copy=False) for layer, array in (aggregated or {}).items()}

    def _shown(self, update: Update) -> Message:
        """The node's reply, as the strategy is shown it; nothing is copied unless it travelled otherwise."""
        arrays = arrays_in(update.reply.content)
        if is_quantised(self._downlink.dtype):
            arrays = to_array_record(update.arrays)
        update.reply.content = RecordDict({"arrays": self._in_order(arrays), "metrics": update.metrics})
        return update.reply

    def _in_order(self, arrays: ArrayRecord) -> ArrayRecord:
        """Arrays that it aggregates, by name: some strategies pair them by place. As float32 if they travel rounded."""
        arrays = record_of(self.to_aggregate(arrays))
        if self._downlink.is_rounding:
            arrays = to_array_record(decode(from_array_record(arrays, "the strategy")))
        return record_of({name: arrays[name] for name in sorted(arrays)})

    # an interrupted run ----------------------------------------------------------------------------------

    def state(self) -> State:
        """Every attribute of the strategy that holds arrays; others as empty kinds: it may always remember some."""
        state = {}
        for attribute, value in vars(self.strategy).items():
            kind, held = _arrays_in(value)
            state[f"{kind}:{attribute}"] = held
        return state

    def load_state(self, state: State) -> None:
        """Set these attributes on a strategy that has not been used."""
        self.strategy = copy.deepcopy(self._unused)
        for key, arrays in state.items():
            kind, _, attribute = key.partition(":")
            setattr(self.strategy, attribute, _as_kind(kind, arrays))


class _Nodes:
    """As much of a grid as strategies need to configure a round: its nodes."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return self.nodes


def _arrays_in(value: Any) -> tuple[str, dict[str, np.ndarray]]:
    """Kind and arrays of one attribute; no arrays in settings."""
    if isinstance(value, ArrayRecord):
        return "record", from_array_record(value, "the strategy")
    kind, items = ("list", dict(enumerate(value))) if isinstance(value, list) else ("dict", value)
    if not isinstance(items, dict):
        return kind, {}
    return kind, {str(key): array for key, array in items.items() if isinstance(array, np.ndarray)}


def _as_kind(kind: str, arrays: Mapping[str, np.ndarray]) -> Any:
    if kind == "record":
        return to_array_record(arrays)
    return [arrays[str(index)] for index in range(len(arrays))] if kind == "list" else dict(arrays)
