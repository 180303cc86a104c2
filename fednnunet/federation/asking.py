"""Questions to the nodes and their answers: requests out, validated replies in, failures by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fednnunet.errors import NodeError, ProtocolError
from fednnunet.exchange import messages
from fednnunet.exchange.messages import Body, Kind, parse_body
from fednnunet.federation.grid import stream_replies
from fednnunet.federation.journal import Journal

if TYPE_CHECKING:
    from fednnunet.federation.server_app import Federation, ServerSettings

R = TypeVar("R", bound=Body)


def ask(
    grid: Grid,
    kind: Kind,
    requests: Mapping[int, Body],
    federation: Federation,
    settings: ServerSettings,
    journal: Journal | None = None,
    arrays: Mapping[int, ArrayRecord] | None = None,
    at_least: int | None = None,
) -> list[tuple[int, Any, ArrayRecord]]:
    """Send one request a node, wait for all replies; the first error ends the run, unless enough nodes are in.

    Returns:
        Node id, validated reply and arrays of every node, in the order of ``requests``; with ``at_least``, of those
        that did not fail.
    """
    outgoing = []
    for node, body in requests.items():
        content = RecordDict({"config": ConfigRecord({"body": body.model_dump_json()})})
        if arrays is not None and arrays[node]:
            content["arrays"] = arrays[node]
        outgoing.append(Message(content, dst_node_id=node, message_type=kind.value))
    answered: dict[int, tuple[int, Any, ArrayRecord]] = {}
    failed: dict[int, NodeError] = {}
    for reply in stream_replies(grid, outgoing, settings.timeout):
        node = reply.metadata.src_node_id
        name = federation.name(node)
        if reply.has_error():
            failed[node] = _node_error(federation, node, reply.error.reason or "failed without a reason")
            if at_least is None:
                raise failed[node]
            continue
        body = parse_reply(messages.REPLIES[kind], reply, name)
        answered[node] = (node, body, reply.content.array_records.get("arrays", ArrayRecord()))
        if journal is not None:
            journal.node_done(body.node if isinstance(body, messages.FingerprintReply) else name)
    for node in requests:
        if node not in answered and node not in failed:
            failed[node] = NodeError(federation.name(node), f"{kind.value}: no reply within {settings.timeout} s")
    check_enough(list(failed.values()), len(answered), at_least, journal)
    return [answered[node] for node in requests if node in answered]


def check_enough(failed: Sequence[NodeError], left: int, at_least: int | None, journal: Journal | None) -> None:
    """Go on without the nodes that failed, and say so, where enough are left.

    Raises:
        NodeError: the first failure; too few are left, or none may be missing.
    """
    if failed and (at_least is None or left < at_least):
        raise failed[0]
    for error in failed:
        if journal is not None:
            journal.message(f"{error}; the federation goes on without it")


def _node_error(federation: Federation, node: int, reason: str) -> NodeError:
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
