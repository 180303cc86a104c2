"""Which layers of different networks are the same (paper, eq. 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar

Node = TypeVar("Node", bound=Hashable)
Shapes: TypeAlias = Mapping[str, Sequence[int]]
Matching: TypeAlias = Literal["name"]
Share: TypeAlias = Literal["all", "groups"]


def match_layers(
    shapes: Mapping[Node, Shapes], matching: Matching = "name", share: Share = "all"
) -> dict[Node, dict[str, str]]:
    """Group the layers that are averaged together.

    Args:
        shapes: of every layer, by node.
        matching: ``name``: layers are the same under the same name with the same shape (paper, eq. 2).
        share: ``all``: layers that every node has (paper); ``groups``: each group of two or more nodes that
            have the layer with one shape.

    Returns:
        For every node, its shared layers and the name of the group each is averaged in.

    Raises:
        ValueError: unknown ``matching`` or ``share``.
    """
    if matching != "name":
        raise ValueError(f"matching={matching}: must be name")
    if share not in ("all", "groups"):
        raise ValueError(f"share={share}: must be all or groups")
    members: dict[tuple[str, tuple[int, ...]], list[Node]] = defaultdict(list)
    for node, layers in shapes.items():
        for name, shape in layers.items():
            members[name, tuple(shape)].append(node)
    enough = len(shapes) if share == "all" else 2
    matched: dict[Node, dict[str, str]] = {node: {} for node in shapes}
    for (name, shape), nodes in members.items():
        if len(nodes) < enough:
            continue
        group = name if len(nodes) == len(shapes) else f"{name}@{'x'.join(map(str, shape))}"
        for node in nodes:
            matched[node][name] = group
    return matched
