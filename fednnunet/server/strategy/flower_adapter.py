"""Flower's own strategies, on networks that are the same at every node."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.exchange.rounding import decode
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg, Update, same_metrics


class FlowerStrategy(AsymFedAvg):
    """Lets a strategy of ``flwr.serverapp.strategy`` aggregate what the nodes send.

    Its replies are checked as AsymFedAvg's are, and come in a fixed order. All of a round are held at once, as these
    strategies want. What it remembers over rounds (momenta, the last arrays) is written to the run's folder after each,
    so that an interrupted run goes on with it.

    Args:
        strategy: of Flower; Hydra makes it.
        keep_local: see :class:`~fednnunet.server.strategy.asym_fedavg.AsymFedAvg`.
        fraction_train: likewise; the strategy's own is not used.
        seed: likewise.
        max_update_norm: likewise.
    """

    def __init__(
        self,
        strategy: Strategy,
        keep_local: Sequence[str] = (),
        fraction_train: float = 1.0,
        seed: int = 0,
        max_update_norm: float | None = 10.0,
    ) -> None:
        super().__init__(
            keep_local=keep_local, fraction_train=fraction_train, seed=seed, max_update_norm=max_update_norm
        )
        self._as_made = copy.deepcopy(strategy)
        self.strategy = strategy

    def prepare(
        self,
        layers: Mapping[int, Mapping[str, Sequence[int]]],
        names: Mapping[int, str],
        dtype: ExchangeDtype = "float32",
    ) -> None:
        """As AsymFedAvg's.

        Raises:
            ConfigError: nodes have different networks.
        """
        super().prepare(layers, names, dtype)
        wanted = getattr(self.strategy, "min_available_nodes", 1)
        if len(layers) < wanted:  # it would wait for them for ever
            raise ConfigError(f"{type(self.strategy).__name__} needs {wanted} nodes; there are {len(layers)}")
        first, *others = layers
        for other in others:
            if layers[first] != layers[other]:
                raise ConfigError(
                    f"{type(self.strategy).__name__} needs the same network at every node; {names[first]} and "
                    f"{names[other]} have different ones: set strategy.fingerprint=federated, the same gpu_memory and "
                    "model, or use strategy=asym"
                )

    def begin_fold(self, trained: Mapping[int, int], update_norms: Iterable[Collection[float]] = ()) -> None:
        """As AsymFedAvg's; the strategy forgets its momenta, too."""
        super().begin_fold(trained, update_norms)
        self.strategy = copy.deepcopy(self._as_made)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Show the strategy the arrays of the round; the messages are AsymFedAvg's."""
        # Its messages are not sent: this is where it takes note of the arrays.
        nodes: Any = _Nodes(self._names)
        list(self.strategy.configure_train(server_round, self._in_order(arrays), ConfigRecord(), nodes))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, then let the strategy aggregate; results have the dtypes of what it is given."""
        average = self._new_average()
        valid: dict[int, Message] = {}
        dtypes: dict[str, str] = {}

        def keep(update: Update) -> None:
            average.skip(update.node)  # a second reply is refused
            given = self._in_order(update.reply.content.array_records.get("arrays", ArrayRecord()))
            dtypes.update({layer: array.dtype for layer, array in given.items()})
            update.reply.content = RecordDict({"arrays": given, "metrics": update.metrics})
            valid[update.node] = update.reply

        self._take(server_round, replies, average, keep)
        if not valid:
            return None, None
        given = [valid[node] for node in sorted(valid)]
        # It aggregates nothing where one node has a metric that another lacks.
        for reply, metrics in zip(
            given, same_metrics([r.content.metric_records["metrics"] for r in given]), strict=True
        ):
            reply.content["metrics"] = metrics
        aggregated, metrics_mean = self.strategy.aggregate_train(server_round, given)
        if aggregated is None:
            return None, metrics_mean
        means = {layer: array.numpy().astype(dtypes[layer], copy=False) for layer, array in aggregated.items()}
        return self._rounded(means), metrics_mean

    def _in_order(self, arrays: ArrayRecord) -> ArrayRecord:
        """Arrays by name: some strategies pair them by their place; as float32 where they travel rounded."""
        if self._feedback.rounds:
            arrays = to_array_record(decode(from_array_record(arrays, "the strategy")))
        return ArrayRecord({name: arrays[name] for name in sorted(arrays)})

    # state of an interrupted run -----------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        """A strategy of Flower's may always remember something."""
        return True

    def _state(self) -> dict[str, dict[str, np.ndarray]]:
        state = super()._state()
        for attribute, value in vars(self.strategy).items():
            kind, held = _arrays_in(value)
            state[f"{kind}:{attribute}"] = held
        return state

    def _set_state(self, state: Mapping[str, dict[str, np.ndarray]]) -> None:
        super()._set_state(state)
        for place, values in state.items():
            kind, _, attribute = place.partition(":")
            if attribute:
                setattr(self.strategy, attribute, _as_kind(kind, values))


class _Nodes:
    """As much of a grid as strategies ask for when they configure a round: who is there."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return self.nodes


def _arrays_in(value: Any) -> tuple[str, dict[str, np.ndarray]]:
    """Kind and arrays of what a strategy remembers in one attribute; no arrays in settings."""
    if isinstance(value, ArrayRecord):
        return "record", from_array_record(value, "the strategy")
    kind, items = ("list", dict(enumerate(value))) if isinstance(value, list) else ("dict", value)
    if not isinstance(items, dict):
        return kind, {}
    return kind, {str(key): array for key, array in items.items() if isinstance(array, np.ndarray)}


def _as_kind(kind: str, values: Mapping[str, np.ndarray]) -> Any:
    if kind == "record":
        return to_array_record(values)
    return [values[str(place)] for place in range(len(values))] if kind == "list" else dict(values)
