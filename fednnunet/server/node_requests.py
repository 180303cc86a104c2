"""Requests to many nodes and their validated replies; failures are named."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from flwr.app import ArrayRecord, Message

from fednnunet.errors import ConfigError, FednnUNetError, NodeError, ProtocolError
from fednnunet.exchange.messages import REPLIES, Body, FingerprintReply, FingerprintRequest, Kind
from fednnunet.listing import join_nodes
from fednnunet.server.local_grid import wait_for_next_poll
from fednnunet.server.node_client import Whole, is_unreachable
from fednnunet.server.node_messages import arrays_of, build_request, parse_reply

if TYPE_CHECKING:
    from fednnunet.server.session import Session


class Reply(NamedTuple):
    """A node's validated reply.

    Attributes:
        node: its Flower id.
        body: the message's, of the type that its request asks for.
        arrays: the layers beside it.
    """

    node: int
    body: Any
    arrays: ArrayRecord


def request_all(
    session: Session,
    kind: Kind,
    requests: Mapping[int, Body],
    arrays: Mapping[int, ArrayRecord] | None = None,
    *,
    wait_for_all: bool = False,
    optional: bool = False,
    report: bool = True,
    consequence: str = "the federation goes on without it",
    whole: Whole = lambda _: None,
) -> list[Reply]:
    """Send one request per node and wait for the replies.

    Args:
        session: of the run.
        kind: of all messages.
        requests: node id to body.
        arrays: node id to the layers beside the body.
        wait_for_all: nodes that are away and come back are waited for even where enough others have replied: the
            request comes only once.
        optional: where the run may miss nodes, this step needs none.
        report: notify the observers of each reply.
        consequence: what follows for a node that fails, for the operator.
        whole: see :meth:`~fednnunet.server.node_client.NodeClient.stream`.

    Returns:
        Replies in the order of ``requests``, without nodes that failed.

    Raises:
        NodeError, ProtocolError: of a node that cannot be missed; see :meth:`Session.accept_failures`.
    """
    settings = session.settings
    payloads = arrays or {}
    outgoing = [build_request(kind, node, body, payloads.get(node)) for node, body in requests.items()]
    min_replies = 0 if optional else settings.min_nodes
    if settings.min_nodes is None or wait_for_all:
        min_replies = len(outgoing)
    # Where nodes are waited for, the time-out is a round's deadline: a stage takes each node as long as it takes.
    timeout = None if settings.wait_for_nodes else settings.timeout
    replies: dict[int, Reply] = {}
    failures: dict[int, FednnUNetError] = {}
    for message in session.client.stream(outgoing, timeout, min_replies, whole):
        node = message.metadata.src_node_id
        try:
            replies[node] = _read_reply(session, kind, node, message, report)
        except (NodeError, ProtocolError) as error:
            if settings.min_nodes is None:
                raise
            failures[node] = error
    for node in requests:
        if node not in replies and node not in failures:
            name = session.federation.name(node)
            failures[node] = NodeError(name, f"{kind.value}: no reply within {settings.timeout} s")
    session.accept_failures(list(failures.values()), None if optional else len(replies), consequence)
    return [replies[node] for node in requests if node in replies]


def _read_reply(session: Session, kind: Kind, node: int, message: Message, report: bool) -> Reply:
    """The reply that ``message`` of ``node`` holds.

    Raises:
        NodeError: the node failed.
        ProtocolError: a malformed reply; names the node.
    """
    if message.has_error():
        raise _node_error(session, node, message.error.reason or "failed without a reason")
    name = session.client.names.get(node, session.federation.name(node))
    body = parse_reply(REPLIES[kind], message, name)
    if report:
        session.recorder.on_node_reply(body.node if isinstance(body, FingerprintReply) else name)
    return Reply(node, body, arrays_of(message))


def _node_error(session: Session, node: int, reason: str) -> NodeError:
    registered = session.client.names.get(node)
    if registered is not None:
        return NodeError(registered, reason)
    if node not in session.federation.described and reason.startswith("node "):
        # It failed before it could introduce itself; its reason begins with its name.
        name, _, reason = reason.removeprefix("node ").partition(": ")
        return NodeError(name, reason)
    return NodeError(session.federation.name(node), reason)


# the first stage --------------------------------------------------------------------------------------


@dataclass
class _JoiningNodes:
    """Nodes that join the run while it waits for them.

    Attributes:
        expected: number of nodes that are waited for.
        requested: ids of the nodes that have the request.
        pending: message id to node, of requests without a reply.
        replies: node id to reply.
        failures: of nodes that are left out; another may take the place of each.
    """

    expected: int
    requested: set[int] = field(default_factory=set)
    pending: dict[str, int] = field(default_factory=dict)
    replies: dict[int, Reply] = field(default_factory=dict)
    failures: list[FednnUNetError] = field(default_factory=list)

    @property
    def absent(self) -> int:
        """How many more have to connect."""
        return self.expected + len(self.failures) - len(self.requested)

    def waiting_text(self, names: Sequence[str]) -> str:
        """For the operator, while nodes are absent; ``names`` where it is known who they are."""
        listed = f": {join_nodes(names)}" if names else ""
        return f"{self.absent} of {self.expected} nodes are not connected yet{listed}"

    def summary(self) -> str:
        """Who is in and how many are missing, for the operator."""
        present = join_nodes(sorted(reply.body.node for reply in self.replies.values())) if self.replies else "none"
        missing = self.expected - len(self.replies)
        if not missing:
            return f"nodes of the run: {present}"
        silent = len(self.requested) - len(self.replies) - len(self.failures)
        unanswered = f", {silent} of them connected without an answer" if silent else ""
        return f"nodes of the run: {present}; {missing} of {self.expected} nodes are missing{unanswered}"


def request_as_nodes_join(session: Session, request: FingerprintRequest, expected: int) -> list[Reply]:
    """Send each node the request as soon as it is connected, until ``expected`` have replied or the time is over.

    A node that fails is left out, and another may take its place, where the run may miss nodes. Nodes that reply after
    that are not in.

    Returns:
        Replies of the nodes that are in, in the order of their ids.

    Raises:
        NodeError: a node failed, and all are needed.
        ConfigError: too few have replied in time; says who is in, how many are missing, what to do.
    """
    client, settings, recorder = session.client, session.settings, session.recorder
    deadline = math.inf if settings.timeout is None else time.monotonic() + settings.timeout
    at_first = set(client.candidates(settings.centres))
    joining = _JoiningNodes(expected)
    last_text = ""
    while len(joining.replies) < expected and time.monotonic() < deadline:
        new = [node for node in client.candidates(settings.centres) if node not in joining.requested]
        joining.requested.update(new)
        pushed = client.grid.push_messages([build_request(Kind.FINGERPRINT, node, request) for node in new])
        joining.pending.update(zip(pushed, new, strict=True))
        names = _absent_names(session, joining) if joining.absent > 0 else []
        recorder.on_waiting(names)
        text = joining.waiting_text(names)
        if joining.absent > 0 and text != last_text:
            recorder.on_message(f"{text}; the federation waits for them")
        last_text = text
        wait_for_next_poll(client.grid, joining.pending, deadline - time.monotonic())
        _collect_replies(session, joining)
    recorder.on_waiting([])
    if len(joining.replies) < (settings.min_nodes or expected):
        raise ConfigError(
            f"after {settings.timeout} s: {joining.summary()}; start the others and see their logs, or raise "
            "federation.reply_timeout_s, or lower "
            f"federation.{'expected_nodes' if settings.needs_all_nodes else 'min_nodes'}"
        )
    if len(joining.replies) < expected or not at_first.issuperset(joining.replies):
        recorder.on_message(joining.summary())
    return [joining.replies[node] for node in sorted(joining.replies)]


def _collect_replies(session: Session, joining: _JoiningNodes) -> None:
    """Take the replies that are there, until enough are in."""
    for message in session.client.grid.pull_messages(list(joining.pending)) if joining.pending else ():
        node = joining.pending.pop(message.metadata.reply_to_message_id, None)
        if node is None:  # it replied twice
            continue
        if session.settings.wait_for_nodes and is_unreachable(message):
            joining.requested.discard(node)  # it gets the request again when it is back
            continue
        try:
            joining.replies[node] = _read_reply(session, Kind.FINGERPRINT, node, message, report=True)
        except (NodeError, ProtocolError) as error:
            session.accept_failures([error], consequence="it is left out")
            joining.failures.append(error)
        if len(joining.replies) == joining.expected:
            return


def _absent_names(session: Session, joining: _JoiningNodes) -> list[str]:
    """Names of centres of which no node is connected, where the nodes' keys say their names."""
    centres, client = session.settings.centres, session.client
    if centres is None or not client.names:
        return []
    return sorted(set(centres) - {client.name(node) for node in joining.requested})
