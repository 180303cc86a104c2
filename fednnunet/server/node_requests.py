"""Questions to the nodes and their answers: requests out, validated replies in, failures by name."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fednnunet.errors import ConfigError, FednnUNetError, NodeError, ProtocolError
from fednnunet.exchange import messages
from fednnunet.exchange.messages import Body, Kind, parse_body
from fednnunet.server.local_grid import wait_a_moment
from fednnunet.server.node_client import NodeClient, is_unreachable
from fednnunet.server.run_recorder import RunRecorder

if TYPE_CHECKING:
    from fednnunet.server.session import Federation, ServerSettings

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Body)
Answer = tuple[int, Any, ArrayRecord]
"""Node id, validated reply and arrays."""


def ask(
    contact: NodeClient,
    kind: Kind,
    requests: Mapping[int, Body],
    federation: Federation,
    settings: ServerSettings,
    journal: RunRecorder | None = None,
    arrays: Mapping[int, ArrayRecord] | None = None,
    min_replies: int | None = None,
    wait: bool = False,
) -> list[Answer]:
    """Send one request per node, wait for all replies; the first error ends the run, unless enough nodes are in.

    With ``wait``, nodes that are away and come back are waited for even where enough are in: what they are asked comes
    only once.

    Returns:
        Of every node, in the order of ``requests``; with ``min_replies``, of those that did not fail.
    """
    payloads = arrays or {}
    outgoing = [_message(kind, node, body, payloads.get(node)) for node, body in requests.items()]
    answered: dict[int, Answer] = {}
    failed: dict[int, FednnUNetError] = {}
    # Where nodes are waited for, the time-out is a round's deadline: a stage takes each node as long as it takes.
    timeout = None if contact.patient else settings.timeout
    for reply in contact.stream(outgoing, timeout, None if wait else min_replies):
        node = reply.metadata.src_node_id
        try:
            answered[node] = _answer(contact, kind, node, reply, federation, journal)
        except (NodeError, ProtocolError) as error:
            if min_replies is None:
                raise
            failed[node] = error
    for node in requests:
        if node not in answered and node not in failed:
            failed[node] = NodeError(federation.name(node), f"{kind.value}: no reply within {settings.timeout} s")
    check_enough(list(failed.values()), len(answered), min_replies, journal)
    return [answered[node] for node in requests if node in answered]


def request_as_nodes_join(
    contact: NodeClient,
    request: messages.FingerprintRequest,
    nodes: int,
    federation: Federation,
    settings: ServerSettings,
    journal: RunRecorder,
) -> list[Answer]:
    """Ask each node to describe itself as soon as it is on the grid, until ``nodes`` have or the time is over.

    A node that fails is left out, and another may take its place, where ``settings.min_nodes`` says how many are
    needed at least. Whoever answers after that is not in.

    Returns:
        Of the nodes that are in, in the order of their ids.

    Raises:
        NodeError: a node failed, and all are needed.
        ConfigError: too few have answered in time; says who is in, how many are missing, what to do.
    """
    deadline = math.inf if settings.timeout is None else time.monotonic() + settings.timeout
    at_first = set(contact.candidates(settings.centres))
    asked: set[int] = set()
    waiting: dict[str, int] = {}
    answered: dict[int, Answer] = {}
    failed: list[FednnUNetError] = []
    told = ""
    while len(answered) < nodes and time.monotonic() < deadline:
        new = [node for node in contact.candidates(settings.centres) if node not in asked]
        asked.update(new)
        pushed = contact.grid.push_messages([_message(Kind.FINGERPRINT, node, request) for node in new])
        waiting.update(zip(pushed, new, strict=True))
        absent = nodes + len(failed) - len(asked)
        names = _not_there(contact, asked, settings) if absent > 0 else []
        contact.wait_for(names)
        text = f"{absent} of {nodes} nodes are not there yet{': ' if names else ''}{', '.join(names)}"
        if absent > 0 and text != told:
            journal.message(f"{text}; the federation waits for them")
        told = text
        wait_a_moment(contact.grid, waiting, deadline - time.monotonic())
        for reply in contact.grid.pull_messages(list(waiting)) if waiting else ():
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None:  # it replied twice
                continue
            if contact.patient and is_unreachable(reply):
                asked.discard(node)  # it is asked again when it is back
                continue
            try:
                answered[node] = _answer(contact, Kind.FINGERPRINT, node, reply, federation, journal)
            except (NodeError, ProtocolError) as error:
                if settings.min_nodes is None:
                    raise
                failed.append(error)
                journal.message(f"{error}; it is left out")
            if len(answered) == nodes:
                break
    contact.wait_for([])
    silent = len(asked) - len(answered) - len(failed)
    here = ", ".join(sorted(body.node for _, body, _ in answered.values())) or "none"
    said = f"in are {here}" + _missing(nodes - len(answered), nodes, silent)
    if len(answered) < (settings.min_nodes or nodes):
        raise ConfigError(
            f"after {settings.timeout} s {said}; start the others and see their logs, or raise federation.timeout, "
            f"or lower federation.{'nodes' if settings.min_nodes is None else 'min_nodes'}"
        )
    if len(answered) < nodes or not at_first.issuperset(answered):
        journal.message(said)
    return [answered[node] for node in sorted(answered)]


def _not_there(contact: NodeClient, there: Collection[int], settings: ServerSettings) -> list[str]:
    """Names of centres of which no node is there, where keys tell names."""
    if settings.centres is None or not contact.names:
        return []
    return sorted(set(settings.centres) - {contact.name(node) for node in there})


def _missing(missing: int, nodes: int, silent: int) -> str:
    """How many nodes did not come, and how many of them came without telling of themselves."""
    unanswered = f", {silent} of them connected without an answer" if silent else ""
    return f"; {missing} of {nodes} nodes are missing{unanswered}" if missing else ""


def check_enough(
    failed: Sequence[FednnUNetError], left: int, min_replies: int | None, journal: RunRecorder | None
) -> None:
    """Go on without the nodes that failed, and say so, where enough are left.

    Raises:
        NodeError, ProtocolError: the first failure; too few are left, or none may be missing.
    """
    if failed and (min_replies is None or left < min_replies):
        raise failed[0]
    for error in failed:
        said = f"{error}; the federation goes on without it"
        if journal is None:
            log.warning("%s", said)
        else:
            journal.message(said)


def _message(kind: Kind, node: int, body: Body, arrays: ArrayRecord | None = None) -> Message:
    content = RecordDict({"config": ConfigRecord({"body": body.model_dump_json()})})
    if arrays:
        content["arrays"] = arrays
    return Message(content, dst_node_id=node, message_type=kind.value)


def _answer(
    contact: NodeClient, kind: Kind, node: int, reply: Message, federation: Federation, journal: RunRecorder | None
) -> Answer:
    """What ``reply`` of ``node`` holds.

    Raises:
        NodeError: the node failed.
        ProtocolError: a malformed reply; names the node.
    """
    if reply.has_error():
        raise _node_error(federation, node, contact.names.get(node), reply.error.reason or "failed without a reason")
    name = federation.name(node)
    body = parse_reply(messages.REPLIES[kind], reply, name)
    if journal is not None:
        journal.node_done(body.node if isinstance(body, messages.FingerprintReply) else name)
    return node, body, reply.content.array_records.get("arrays", ArrayRecord())


def _node_error(federation: Federation, node: int, registered: str | None, reason: str) -> NodeError:
    if registered is not None:
        return NodeError(registered, reason)
    if node not in federation.described and reason.startswith("node "):
        # It failed before it could introduce itself; its reason begins with its name.
        name, _, reason = reason.removeprefix("node ").partition(": ")
        return NodeError(name, reason)
    return NodeError(federation.name(node), reason)


def parse_reply(model: type[R], reply: Message, node: str) -> R:
    """The validated body of a reply.

    Raises:
        ProtocolError: no body, or a malformed one; names the node.
    """
    config = reply.content.config_records.get("config", ConfigRecord())
    body = config.get("body")
    if not isinstance(body, str):
        raise ProtocolError(f"node {node} sent a reply without a body")
    return parse_body(model, body, f"node {node}")


def num_bytes(message: Message) -> int:
    """Of the arrays in a message."""
    return sum(len(a.data) for record in message.content.array_records.values() for a in record.values())
