"""Every channel of a federation: its place in the common network's input, and which nodes have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fednnunet.errors import DataError
from fednnunet.exchange.messages import MAX_CHANNELS, FingerprintReply
from fednnunet.listing import join_first, join_nodes
from fednnunet.server.label_names import NAMED, check_names


@dataclass(frozen=True)
class ChannelUnion:
    """The channels of all training nodes, by name.

    Attributes:
        names: In the order of the network's input.
        acquired: Name of a node to the channels that it has; external nodes are in it, too.
        differs: Whether a training node lacks one, or has them in another order: nodes then have to be told.
    """

    names: Sequence[str]
    acquired: Mapping[str, Sequence[str]]
    differs: bool

    @property
    def for_training(self) -> list[str] | None:
        """Channels that training nodes plan with; None where each has them anyway."""
        return list(self.names) if self.differs else None

    def places_of(self, own: Mapping[str, str]) -> dict[str, str]:
        """Number of each of a node's channels, in its own order, to that in the network's input."""
        return {number: str(self.names.index(name)) for number, name in own.items()}

    def for_external(self, node: str) -> list[str] | None:
        """Channels of the models that an external node scores; None where it has them anyway."""
        return list(self.names) if list(self.acquired[node]) != list(self.names) else None


def channels_of(reply: FingerprintReply) -> list[str]:
    """The channels of a node, in its order.

    Raises:
        DataError: names node, field and channel: a name that cannot be, or that two channels have.
    """
    where = f"node {reply.node}: channel_names in dataset.json"
    names = list(reply.channel_names.values())
    if not 1 <= len(names) <= MAX_CHANNELS:
        raise DataError(f"{where}: there are {len(names)}; 1 to {MAX_CHANNELS} are possible with task.channels=union")
    check_names(names, where)
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{where}: {name} is there twice; task.channels=union goes by names, so give each channel its own"
            )
    return names


def unite_channels(
    training: Mapping[str, Sequence[str]], external: Mapping[str, Sequence[str]], known: Sequence[str] | None = None
) -> ChannelUnion:
    """The union of the channels of all training nodes.

    Where they all have the same ones in the same order, this order stays. Otherwise they are sorted by name, whatever
    the order of the nodes.

    Args:
        training: Name of a training node to its channels.
        external: The same of external nodes.
        known: Channels that an interrupted run began with; its networks have those.

    Raises:
        DataError: Too many channels; a node with a channel that is not in ``known``; or an external node with one that
            no training node has. Names node and field.
    """
    first, *others = training.values()
    names: Sequence[str] = sorted({name for own in training.values() for name in own})
    if known is not None or all(list(own) == list(first) for own in others):
        names = list(first if known is None else known)
    if len(names) > MAX_CHANNELS:
        raise DataError(
            f"the nodes {join_nodes(list(training))} have {len(names)} channels in dataset.json altogether; at most "
            f"{MAX_CHANNELS} are possible: give those of one kind one name"
        )
    for node, own in training.items():
        new = [name for name in own if name not in names]
        if new:
            raise DataError(
                f"node {node}: channel_names in dataset.json: {new[0]} is not among the channels that the run began "
                "with (channels.csv), for which its network was made; start another run"
            )
    for node, own in external.items():
        unknown = [name for name in own if name not in names]
        if unknown:
            raise DataError(
                f"external node {node}: channel_names in dataset.json: no training node has "
                f"{join_first(unknown, NAMED)}, so no model can use it; leave it out of its dataset, or give it the "
                "name that others use"
            )
    differs = any(list(own) != list(names) for own in training.values())
    return ChannelUnion(names, {**training, **external}, differs)
