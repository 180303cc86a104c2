"""Messages taken apart into the objects that Flower stores, and put together: in one copy, never larger than announced.

An array is an object that lists chunks, each an object of some MiB. It may list one several times, even an empty
one: a few bytes could stand for more than fits into any memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Array, Message
from google.protobuf.message import DecodeError

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import MAX_BYTES
from fednnunet.exchange.flower_internals import (
    CHUNK_HEAD,
    InflatableObject,
    ObjectTree,
    ProtoMessage,
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    inflate_object_from_contents,
    message_to_proto,
    no_object_id_recompute,
    remove_content_from_message,
    set_message_id,
)
from fednnunet.exchange.messages import MAX_BODY_BYTES

MAX_MESSAGE_BYTES = MAX_BYTES + MAX_BODY_BYTES
LEAST_CHUNK_BYTES = 2**14
"""What a chunk counts at least, each time that it is listed: joining it takes half a kilobyte however short it is."""
UNREADABLE = (DecodeError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""Errors of Flower and protobuf about objects that are malformed, or do not belong together."""


@dataclass(frozen=True)
class Parts:
    """A message that is to be sent.

    Attributes:
        head: what is said of it, without its content.
        tree: ids of its objects.
        objects: id to object; the id is its SHA-256.
    """

    head: ProtoMessage
    tree: ObjectTree
    objects: dict[str, InflatableObject]


def take_apart(message: Message) -> Parts:
    """What a message is sent as; it gets its id by it. No checksum is computed twice."""
    with no_object_id_recompute():
        set_message_id(message, message.object_id)
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
    head = message_to_proto(remove_content_from_message(message) if message.has_content() else message)
    return Parts(head, tree, objects)


def limited(pull: Callable[[str], bytes], where: str) -> Callable[[str], bytes]:
    """A function that pulls objects as ``pull`` does, but not more of them than a message may hold.

    Raises:
        ProtocolError: by that function, naming ``where``.
    """
    remaining = MAX_MESSAGE_BYTES

    def pull_limited(object_id: str) -> bytes:
        nonlocal remaining
        content = pull(object_id)
        remaining -= len(content)
        if remaining < 0:
            raise ProtocolError(f"{where} sent more than a message may hold")
        return content

    return pull_limited


def assemble(message_id: str, contents: dict[str, bytes], where: str) -> Message:
    """The message with an id, from its objects.

    Args:
        message_id: id of the object that is the message.
        contents: of all objects, by id; those that are needed no more are removed.
        where: who sent it.

    Raises:
        ProtocolError: the objects are no message, or one that is too large; names ``where``.
    """
    try:
        arrays = _join_arrays(contents, where)
        message = inflate_object_from_contents(message_id, contents, objects={**arrays})
    except UNREADABLE as error:
        raise ProtocolError(f"{where} sent a message that cannot be read ({type(error).__name__})") from error
    if not isinstance(message, Message):
        raise ProtocolError(f"{where} sent something that is not a message")
    return message


def _join_arrays(contents: dict[str, bytes], where: str) -> dict[str, Array]:
    """All arrays among the objects, by id; chunks that are needed no more are removed."""
    remaining, described = MAX_MESSAGE_BYTES, []
    for id_, content in contents.items():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            fields = json.loads(get_object_body(content, Array))
            numbers = fields["arraychunk_ids"]
            if len(numbers) * LEAST_CHUNK_BYTES > remaining:
                raise ProtocolError(f"{where} sent more than a message may hold")
            chunks = [children[number] for number in numbers]
            if set(chunks) != set(children):
                raise ProtocolError(f"{where} sent an array that does not consist of its chunks")
            lengths = (len(contents[chunk]) - _start(contents[chunk]) for chunk in chunks)
            remaining -= sum(max(length, LEAST_CHUNK_BYTES) for length in lengths)
            if remaining < 0:
                raise ProtocolError(f"{where} sent more than a message may hold")
            described.append((id_, fields, chunks))
    uses = Counter(chunk for _, _, chunks in described for chunk in set(chunks))
    arrays = {}
    for id_, fields, chunks in described:
        data = b"".join(memoryview(contents[chunk])[_start(contents[chunk]) :] for chunk in chunks)
        arrays[id_] = Array(fields["dtype"], tuple(fields["shape"]), fields["stype"], data)
        for chunk in set(chunks):
            uses[chunk] -= 1
            if not uses[chunk]:
                del contents[chunk]
    return arrays


def _start(chunk: bytes) -> int:
    """Where the bytes of a chunk start."""
    if not chunk.startswith(CHUNK_HEAD):
        raise ValueError("not a chunk of an array")
    return chunk.index(b"\0") + 1
