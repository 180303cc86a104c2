"""Flower messages to and from nodes: a JSON body, and arrays beside it."""

from __future__ import annotations

from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fednnunet import __version__
from fednnunet.errors import ProtocolError, one_line
from fednnunet.exchange.messages import Body, EvaluateRequest, Kind, TrainRequest, parse_body
from fednnunet.exchange.records import arrays_in, config_in

B = TypeVar("B", bound=Body)


def build_request(kind: Kind, node: int, body: Body, arrays: ArrayRecord | None = None) -> Message:
    """The message that carries ``body``, and ``arrays`` where there are any, to a node."""
    content = RecordDict({"config": ConfigRecord({"body": body.model_dump_json()})})
    if arrays:
        content["arrays"] = arrays
    return Message(content, dst_node_id=node, message_type=kind.value)


def copy_request(message: Message) -> Message:
    """The same request as a new message: Flower sends each message once."""
    metadata = message.metadata
    return Message(message.content, metadata.dst_node_id, metadata.message_type)


def with_whole_layers(
    request: Message, body: type[TrainRequest | EvaluateRequest], whole: ArrayRecord
) -> Message | None:
    """A request again, with ``whole`` in place of steps; None where it had no steps."""
    text = str(config_in(request.content)["body"])
    steps = body.model_validate_json(text)
    if not steps.references:
        return None
    metadata = request.metadata
    return build_request(
        Kind(metadata.message_type), metadata.dst_node_id, steps.model_copy(update={"references": {}}), whole
    )


def parse_reply(model: type[B], reply: Message, node: str) -> B:
    """The validated body of a reply.

    Raises:
        ProtocolError: another version of this package sent it, or no body, or a malformed one; names the node.
    """
    config = config_in(reply.content)
    body, version = config.get("body"), config.get("version", "of an unknown version")
    if not isinstance(body, str):
        raise ProtocolError(f"node {node} sent a reply without a body")
    if version != __version__:
        raise ProtocolError(
            f"node {node} runs fednnunet {one_line(str(version))}, the server {__version__}; install the same version, "
            "and start the node again"
        )
    return parse_body(model, body, f"node {node}")


def arrays_of(reply: Message) -> ArrayRecord:
    """The arrays beside the body; empty where there are none."""
    return arrays_in(reply.content)


def num_bytes(message: Message) -> int:
    """Bytes of all arrays in a message."""
    records = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
    return sum(len(array.data) for record in records for array in record.values())
