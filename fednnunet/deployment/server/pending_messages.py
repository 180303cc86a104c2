"""Messages that were sent to nodes and not replied to yet, and which of them their nodes have lost.

The SuperLink hands out a message once. A node that was killed has lost it; after its restart it asks for messages
again, which a node at work on one does not do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message

from fednnunet.deployment.server.flower_internals import NodeInfo

POLLS_OF_A_LOST_MESSAGE = 3
"""One poll fetches the message; a node that polls twice more has lost it."""


@dataclass
class PendingMessage:
    """A message that has been sent and not been replied to.

    Attributes:
        message: as the server app gave it.
        flower_id: id in the SuperLink; changes when the message is sent again.
        polls: how often its node had asked for messages when it was sent; None where that is not known.
        is_abandoned: nobody waits for its reply any more.
    """

    message: Message
    flower_id: str
    polls: int | None
    is_abandoned: bool = False

    @property
    def node_id(self) -> int:
        """Node that the message is for."""
        return self.message.metadata.dst_node_id


class PollCounts:
    """How often nodes have asked for messages, which the server's gateway counts by public key.

    Args:
        read_nodes: reads the registered nodes from the server.
        read_polls: reads the counts from the server.
    """

    def __init__(self, read_nodes: Callable[[], list[NodeInfo]], read_polls: Callable[[], dict[bytes, int]]) -> None:
        self._read_nodes = read_nodes
        self._read_polls = read_polls
        self._keys: dict[int, bytes] = {}

    def by_node(self, node_ids: Iterable[int]) -> dict[int, int]:
        """Count of each node, by node id; at least of ``node_ids``, those that are connected."""
        if not set(node_ids) <= self._keys.keys():
            self._keys = {node.node_id: node.public_key for node in self._read_nodes()}
        counts = self._read_polls()
        return {node: counts.get(key, 0) for node, key in self._keys.items()}


def is_lost(sent: PendingMessage, polls: Mapping[int, int]) -> bool:
    """Whether the node has asked for other messages since, which a node at work on this one does not do.

    Args:
        sent: message to check; its ``polls`` is lowered if the SuperLink was restarted and counts anew.
        polls: how often nodes have asked for messages, by node id.
    """
    count = polls.get(sent.node_id)
    if count is None or sent.polls is None:
        return False
    sent.polls = min(sent.polls, count)
    return count - sent.polls >= POLLS_OF_A_LOST_MESSAGE
