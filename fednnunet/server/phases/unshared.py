"""What a node's model cannot learn of all labels and channels: it shares their layers with no node that has them.

Networks that were planned unlike share only the layers that match, and with ``strategy=local`` none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from fednnunet.listing import join_first
from fednnunet.server.label_names import NAMED
from fednnunet.server.session import Session


def report_unshared(session: Session) -> None:
    """Say which labels and channels a node's own model does not learn, though others have them.

    Such channels are kept in :attr:`~fednnunet.server.session.Federation.unlearnt_channels`: models are scored without.
    """
    federation, recorder = session.federation, session.recorder
    labels, channels = federation.labels, federation.channels
    if labels is not None and labels.differs:
        heads = {node: _final_head(federation.planned[node].heads) for node in federation.training}
        annotated = {node: labels.annotated[federation.name(node)] for node in federation.training}
        order = sorted(labels.values, key=labels.values.__getitem__)
        lines = {
            federation.name(node): [
                f"node {federation.name(node)}: the head of its network, {' and '.join(heads[node])}, is averaged with "
                f"that of no node that annotates {join_first(lost, NAMED)}: what its model segments as such means "
                "nothing (strategy=ffe shares all layers)"
            ]
            for node, lost in _unlearnt(session, heads, annotated, order)
        }
        recorder.on_node_messages(lines, f"the models of {len(lines)} nodes do not learn all labels")
    if channels is not None and channels.differs:
        first = {
            node: _first_layer(federation.planned[node].layers, len(channels.names)) for node in federation.training
        }
        acquired = {node: channels.acquired[federation.name(node)] for node in federation.training}
        federation.unlearnt_channels = dict(_unlearnt(session, first, acquired, channels.names))
        lines = {
            federation.name(node): [
                f"node {federation.name(node)}: the first layer of its network is averaged with that of no node that "
                f"has {join_first(lost, NAMED)}: its model has not learnt to use it, and is scored with zeros there; "
                "give it zeros, too"
            ]
            for node, lost in federation.unlearnt_channels.items()
        }
        recorder.on_node_messages(lines, f"the models of {len(lines)} nodes do not learn from all channels")


def report_few_labellings(session: Session) -> None:
    """Say which nodes' training has no time for pseudo-labels of all cases (``task.pseudo_labels``)."""
    federation = session.federation
    lines = {}
    for node in federation.training:
        labellings = federation.preprocessed[node].labellings
        receives = any(session.strategy.groups.of_node(node).values())
        if labellings is not None and labellings < 1 and receives:
            name = federation.name(node)
            lines[name] = [
                f"node {name}: training has time for pseudo-labels of {labellings:.0%} of its cases; the others are "
                "trained on without, and organs that it has not annotated learnt less well; raise task.pseudo_labels"
            ]
    session.recorder.on_node_messages(lines, f"{len(lines)} nodes have no time for pseudo-labels of all cases")


def group_of_first_layer(session: Session, node: int, channels: int) -> str | None:
    """Group in which a node's first layer is combined; None where it stays the node's own, or none is known.

    Args:
        session: the session.
        node: id of the node.
        channels: number of channels that its network takes.
    """
    first = _first_layer(session.federation.planned[node].layers, channels)
    return session.strategy.groups.of_node(node).get(first[0]) if first else None


def _unlearnt(
    session: Session, layers: Mapping[int, list[str]], held: Mapping[int, Collection[str]], everything: Collection[str]
) -> Iterator[tuple[int, list[str]]]:
    """Nodes, and what those with whom they share their ``layers`` lack, but another training node has."""
    groups = session.strategy.groups
    members = groups.members()
    anywhere = set().union(*held.values())
    of_group: dict[str, set[str]] = {}
    for node, names in layers.items():
        learnt = set(anywhere)
        for layer in names:
            group = groups.of_node(node).get(layer)
            if group is None:
                learnt &= set(held[node])
                continue
            if group not in of_group:
                of_group[group] = set().union(*(held[one] for one in members[group]))
            learnt &= of_group[group]
        lost = [name for name in everything if name in anywhere and name not in learnt]
        if lost:
            yield node, lost


def _final_head(heads: list[str]) -> list[str]:
    """Weight and bias of the last head, in the order of the network: the one that segments."""
    module = heads[-1].rpartition(".")[0]
    return [head for head in heads if head.rpartition(".")[0] == module]


def _first_layer(layers: Mapping[str, list[int]], channels: int) -> list[str]:
    """The first layer of a network that takes this many channels; of none, nothing can be said."""
    return next(([name] for name, shape in layers.items() if len(shape) > 1 and shape[1] == channels), [])
