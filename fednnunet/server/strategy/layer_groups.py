"""Which layers nodes exchange, and in which group each is combined at the server."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod

from flwr.app import ArrayRecord

from fednnunet.errors import ConfigError
from fednnunet.exchange.records import record_of
from fednnunet.server.strategy.layer_matching import Shapes


class LayerGroups:
    """Layers that each node exchanges, and their groups.

    The server holds one array per group. A node sends and receives its layers under its own names: its architecture
    decides what a layer is called, its group decides what the layer is combined with.

    Args:
        layers: node id to layer to shape; all layers of the node's network.
        groups: node id to exchanged layer to group, as
            :func:`~fednnunet.server.strategy.layer_matching.match_layers` returns them.
        keep_local: parts of layer names, such as ``seg_layers`` or ``norm``; a layer with one of them between its dots
            stays its node's own (personalised federated learning).
        buffers: node id to those of its layers that no optimizer trains, such as running statistics.

    Raises:
        ConfigError: no layer has one of the parts in ``keep_local``.
    """

    def __init__(
        self,
        layers: Mapping[int, Shapes],
        groups: Mapping[int, Mapping[str, str]],
        keep_local: Sequence[str] = (),
        buffers: Mapping[int, Collection[str]] | None = None,
    ) -> None:
        kept = frozenset(keep_local)
        _check_parts(kept, layers)
        self._layers = layers
        self._groups = {
            node: {layer: group for layer, group in matched.items() if not kept & set(layer.split("."))}
            for node, matched in groups.items()
        }
        self.buffers = frozenset(
            group
            for node, matched in self._groups.items()
            for layer, group in matched.items()
            if layer in (buffers or {}).get(node, ())
        )
        """Groups of buffers."""

    @property
    def nodes(self) -> list[int]:
        """Nodes of the federation, in their fixed order."""
        return list(self._groups)

    @property
    def names(self) -> list[str]:
        """Names of all groups, each once, in the order of the nodes and their networks."""
        return list(dict.fromkeys(group for groups in self._groups.values() for group in groups.values()))

    def of_node(self, node: int) -> Mapping[str, str]:
        """Layer to group, of the layers that ``node`` sends and receives."""
        return self._groups[node]

    def layers_of(self, node: int) -> list[str]:
        """Layers that ``node`` sends and receives."""
        return list(self._groups[node])

    def group_of(self, node: int, layer: str) -> str:
        """Group in which ``layer`` of ``node`` is combined."""
        return self._groups[node][layer]

    def members(self) -> dict[str, list[int]]:
        """Group to the nodes that exchange a layer of it."""
        members: dict[str, list[int]] = {}
        for node, matched in self._groups.items():
            for group in matched.values():
                members.setdefault(group, []).append(node)
        return members

    def shapes_of(self, node: int) -> dict[str, tuple[int, ...]]:
        """Layer to shape, of the layers that ``node`` sends and receives."""
        return {layer: tuple(self._layers[node][layer]) for layer in self._groups[node]}

    def arrays_for(self, node: int, arrays: ArrayRecord) -> ArrayRecord:
        """Arrays of the groups that ``node`` is in, under its own layer names; nothing is copied."""
        return record_of({layer: arrays[group] for layer, group in self._groups[node].items() if group in arrays})

    def shared_fraction(self) -> dict[int, float]:
        """Node id to the fraction of its parameters that it exchanges."""
        return {
            node: sum(prod(layers[name]) for name in self._groups[node]) / sum(prod(shape) for shape in layers.values())
            for node, layers in self._layers.items()
        }

    def cover_all_layers(self, nodes: Sequence[int]) -> bool:
        """Whether ``nodes`` exchange every layer of their networks, all in the same groups."""
        first = self._groups[nodes[0]]
        return all(self._groups[node] == first and len(first) == len(self._layers[node]) for node in nodes)


def check_groups(
    layers: Mapping[int, Shapes],
    groups: Mapping[int, Mapping[str, str]],
    names: Mapping[int, str],
    strategy: str,
    buffers: Mapping[int, Collection[str]] | None = None,
) -> None:
    """Refuse groups that cannot be combined.

    Args:
        layers: node id to layer to shape; all layers of the node's network.
        groups: node id to exchanged layer to group, as a strategy's ``match_layers`` returns them.
        names: node id to the node's name.
        strategy: name of its class.
        buffers: node id to those of its layers that no optimizer trains.

    Raises:
        ConfigError: a node without an entry or that is not in the run, a layer that its node does not have, two layers
            of one node in one group, two shapes in one group, or a buffer and a trained layer in one.
    """
    where = f"{strategy}.match_layers"
    for node in layers:
        if node not in groups:
            raise ConfigError(f"{where}: node {names[node]} is missing; one without shared layers has {{}}")
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, tuple[bool, int, str]] = {}
    for node, matched in groups.items():
        if node not in layers:
            raise ConfigError(f"{where}: node {node} is not part of this run")
        layer_of: dict[str, str] = {}
        for layer, group in matched.items():
            if layer not in layers[node]:
                raise ConfigError(f"{where}: node {names[node]} has no layer {layer}")
            if group in layer_of:
                raise ConfigError(
                    f"{where}: layers {layer_of[group]} and {layer} of node {names[node]} are both in group {group}"
                )
            layer_of[group] = layer
            shape = tuple(layers[node][layer])
            if shapes.setdefault(group, shape) != shape:
                raise ConfigError(
                    f"{where}: layer {layer} of node {names[node]} has shape {shape}; others in group {group} have "
                    f"{shapes[group]}"
                )
            is_buffer = layer in (buffers or {}).get(node, ())
            is_other, other, theirs = kinds.setdefault(group, (is_buffer, node, layer))
            if is_buffer != is_other:
                names_of = {is_buffer: f"{layer} of node {names[node]}", is_other: f"{theirs} of node {names[other]}"}
                raise ConfigError(
                    f"{where}: {names_of[True]} is a buffer (running statistics), {names_of[False]} is trained; they "
                    "cannot be averaged together: install the same software at both nodes"
                )


def _check_parts(keep_local: frozenset[str], layers: Mapping[int, Shapes]) -> None:
    parts = {part for names in layers.values() for name in names for part in name.split(".")}
    unknown = sorted(keep_local - parts)
    if unknown:
        raise ConfigError(
            f"strategy.aggregation.keep_local: no layer has the part {unknown[0]}; there are, for example, "
            f"{', '.join(sorted(part for part in parts if not part.isdigit()))}"
        )
