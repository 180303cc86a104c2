"""Flower's own strategies, on networks that are the same at every node."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.federation.strategy import AsymFedAvg

KEPT_STATES = 2


class FlowerStrategy(AsymFedAvg):
    """Lets a strategy of ``flwr.serverapp.strategy`` aggregate what the nodes send.

    Its replies are checked as AsymFedAvg's are, and come in a fixed order. All of a round are held at once, as these
    strategies want. What it remembers over rounds (momenta, the last arrays) is written to the run's folder after each,
    so that an interrupted run goes on with it.

    Args:
        strategy: of Flower; Hydra makes it.
        keep_local: see :class:`~fednnunet.federation.strategy.AsymFedAvg`.
        fraction_train: likewise; the strategy's own is not used.
        seed: likewise.
    """

    def __init__(
        self, strategy: Strategy, keep_local: Sequence[str] = (), fraction_train: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(keep_local=keep_local, fraction_train=fraction_train, seed=seed)
        self.strategy = strategy

    def prepare(self, layers: Mapping[int, Mapping[str, Sequence[int]]], names: Mapping[int, str]) -> None:
        """As AsymFedAvg's.

        Raises:
            ConfigError: nodes have different networks.
        """
        super().prepare(layers, names)
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
        """Check every reply, then let the strategy aggregate; results have the dtypes that were sent."""
        average = self._new_average()
        valid: dict[int, Message] = {}
        dtypes: dict[str, np.dtype] = {}

        def keep(reply: Message, name: str, metrics: MetricRecord, arrays: ArrayRecord) -> None:
            node = reply.metadata.src_node_id
            received = from_array_record(arrays, f"node {name}")
            average.check(node, received, 1.0, f"node {name}")
            average.skip(node)  # a second reply is refused
            dtypes.update({layer: array.dtype for layer, array in received.items()})
            reply.content = RecordDict({"arrays": self._in_order(arrays), "metrics": metrics})
            valid[node] = reply

        self._take(server_round, replies, keep)
        if not valid:
            return None, None
        aggregated, metrics_mean = self.strategy.aggregate_train(server_round, [valid[n] for n in sorted(valid)])
        if aggregated is None:
            return None, metrics_mean
        means = {layer: array.numpy().astype(dtypes[layer], copy=False) for layer, array in aggregated.items()}
        return to_array_record(means), metrics_mean

    def _in_order(self, arrays: ArrayRecord) -> ArrayRecord:
        """Arrays by name: some strategies pair them by their place."""
        return ArrayRecord({name: arrays[name] for name in sorted(arrays)})

    # state of an interrupted run -----------------------------------------------------------------------

    def save(self, folder: Path, fold: Fold, server_round: int, arrays: ArrayRecord) -> None:
        """Write what the strategy remembers and the arrays of the next round; the last two rounds are kept."""
        content: dict[str, np.ndarray] = {
            f"arrays/{name}": array for name, array in from_array_record(arrays, "the server").items()
        }
        for attribute, value in vars(self.strategy).items():
            kind, held = _arrays_in(value)
            content |= {f"{kind}:{attribute}/{key}": array for key, array in held.items()}
        path = _state_file(folder, fold, server_round)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **content)  # type: ignore[arg-type]
        os.replace(partial, path)
        _state_file(folder, fold, server_round - KEPT_STATES).unlink(missing_ok=True)

    def remembers(self, folder: Path, fold: Fold, server_round: int) -> bool:
        """Whether :meth:`save` was done with this round; the nodes may be a round ahead."""
        return _state_file(folder, fold, server_round).is_file()

    def restore(self, folder: Path, fold: Fold, server_round: int) -> ArrayRecord | None:
        """Read what :meth:`save` wrote after a round."""
        arrays: dict[str, np.ndarray] = {}
        remembered: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        with np.load(_state_file(folder, fold, server_round), allow_pickle=False) as content:
            for name in content.files:
                place, _, key = name.partition("/")
                if place == "arrays":
                    arrays[key] = content[name]
                else:
                    kind, _, attribute = place.partition(":")
                    remembered.setdefault((kind, attribute), {})[key] = content[name]
        for (kind, attribute), values in remembered.items():
            setattr(self.strategy, attribute, _as_kind(kind, values))
        return to_array_record(arrays)


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


def _state_file(folder: Path, fold: Fold, server_round: int) -> Path:
    return folder / f"strategy_fold_{fold}_round_{server_round}.npz"
