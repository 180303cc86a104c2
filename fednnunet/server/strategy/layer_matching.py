"""Which layers of different networks match: by name (paper, eq. 2) or by resolution."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar, get_args

Node = TypeVar("Node", bound=Hashable)
Shapes: TypeAlias = Mapping[str, Sequence[int]]
Matching: TypeAlias = Literal["name", "resolution"]
AverageOver: TypeAlias = Literal["all", "groups"]

DECODER_LAYER = re.compile(r"decoder\.(stages|transpconvs|seg_layers)\.(\d+)\.(.+)")
"""Layers that nnU-Net numbers from the bottleneck up (``dynamic_network_architectures`` ``UNetDecoder``)."""


def match_layers(
    shapes: Mapping[Node, Shapes], matching: Matching = "name", average_over: AverageOver = "all"
) -> dict[Node, dict[str, str]]:
    """Group the layers that are averaged together.

    Args:
        shapes: node to layer to shape.
        matching: ``name``: layers match if they have the same name and the same shape (paper, eq. 2).
            ``resolution``: decoder stages, transposed convolutions and segmentation heads are counted from the full
            resolution down, as the encoder's are; nnU-Net numbers them from the bottleneck, so that in networks of 7
            and 8 stages ``decoder.stages.2`` works at different resolutions.
        average_over: ``all``: only layers that every node has (paper). ``groups``: every group of two or more nodes
            that have the layer with one shape.

    Returns:
        Node to matching layer to the name of the group that it is averaged in; layers in the order of the network.

    Raises:
        ValueError: unknown ``matching`` or ``average_over``.
    """
    for argument, value, known in (("matching", matching, Matching), ("average_over", average_over, AverageOver)):
        if value not in get_args(known):
            raise ValueError(f"{argument}={value}: must be {' or '.join(get_args(known))}")
    members: dict[tuple[str, tuple[int, ...]], list[tuple[Node, str]]] = defaultdict(list)
    for node, layers in shapes.items():
        places = places_by_resolution(layers) if matching == "resolution" else {name: name for name in layers}
        for name, shape in layers.items():
            members[places[name], tuple(shape)].append((node, name))
    min_members = len(shapes) if average_over == "all" else 2
    matched: dict[Node, dict[str, str]] = {node: {} for node in shapes}
    for (place, shape), layers_there in members.items():
        if len(layers_there) < min_members:
            continue
        group = place if len(layers_there) == len(shapes) else f"{place}@{'x'.join(map(str, shape))}"
        for node, name in layers_there:
            matched[node][name] = group
    # In the order of the network, not in the order in which groups were found.
    return {node: {name: matched[node][name] for name in shapes[node] if name in matched[node]} for node in shapes}


def places_by_resolution(layers: Iterable[str]) -> dict[str, str]:
    """Layer to its place in the network, with decoder layers counted from the full resolution (0) down."""
    found = {name: DECODER_LAYER.fullmatch(name) for name in layers}
    stages = 1 + max((int(match[2]) for match in found.values() if match), default=0)
    return {
        name: f"decoder.{match[1]}.from_top.{stages - 1 - int(match[2])}.{match[3]}" if match else name
        for name, match in found.items()
    }
