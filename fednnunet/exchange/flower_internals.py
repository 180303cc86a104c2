"""Details of Flower's messages that are not part of its public API (``flwr.app``, ``clientapp``, ``serverapp``).

Everything that this project uses beyond that API stands in three modules of this name: this one, and those of
``deployment/node`` and ``deployment/server``. ``tests/test_flower_contract.py`` names what a release of Flower changed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence

from flwr.app import Array, Message
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CHUNK_HEAD",
    "ArrayInPieces",
    "Chunk",
    "ErrorCode",
    "InflatableObject",
    "ObjectTree",
    "ProtoMessage",
    "Run",
    "act_as",
    "aggregate_metricrecords",
    "get_all_nested_objects",
    "get_object_body",
    "get_object_head_values_from_object_content",
    "get_object_tree",
    "inflate_object_from_contents",
    "message_to_proto",
    "no_object_id_recompute",
    "relabel",
    "remove_content_from_message",
    "set_message_id",
]

CHUNK_HEAD = b"ArrayChunk  "
"""Of Flower's format, up to the number of bytes, which ends with a zero byte; a chunk has no children."""
_OWN_TASK = 1
"""Id of the task that sends; Flower requires one and looks only at the node's."""


def act_as(node_id: int, run_id: int, task_id: int = _OWN_TASK) -> None:
    """Make ``node_id`` the sender of all messages that this process creates from now on."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, which Flower itself does when it sends or receives one."""
    message.metadata.__dict__["_message_id"] = message_id


def relabel(reply: Message, src_node_id: int, reply_to_message_id: str) -> None:
    """Set who sent a reply, and to which message it is one."""
    reply.metadata.__dict__.update(_src_node_id=src_node_id, _reply_to_message_id=reply_to_message_id)


class Chunk(ArrayChunk):
    """A part of an array in pieces; unlike Flower's, it is copied once to be sent, and its checksum computed once.

    Args:
        pieces: that make it up, which must not change any more.
    """

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        super().__init__(memoryview(b""))
        self._pieces = pieces
        self.size = sum(len(piece) for piece in pieces)

    @functools.cached_property
    def object_id(self) -> str:
        """SHA-256 of what :meth:`deflate` gives."""
        digest = hashlib.sha256()
        for part in self.parts():
            digest.update(part)
        return digest.hexdigest()

    def parts(self) -> list[bytes | memoryview]:
        """What :meth:`deflate` gives, in pieces."""
        return [b"%s%d\0" % (CHUNK_HEAD, self.size), *self._pieces]

    def deflate(self) -> bytes:
        """The chunk in Flower's format."""
        return b"".join(self.parts())


class ArrayInPieces(Array):
    """An array of bytes that lie in several places, which are copied when they are sent.

    Args:
        stype: what Flower calls the type of its bytes.
        pieces: that make it up, which must not change before it is sent.
        chunk_bytes: size of the chunks that it is sent in.
    """

    __qualname__ = "Array"  # by which Flower knows it where it arrives

    def __init__(self, stype: str, pieces: Sequence[bytes | memoryview], chunk_bytes: int) -> None:
        self._pieces = [memoryview(piece) for piece in pieces]
        size = sum(len(piece) for piece in self._pieces)
        super().__init__("uint8", (size,), stype, b"")
        chunks = [Chunk(part) for part in _cut(self._pieces, chunk_bytes)]
        self.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]

    @property
    def data(self) -> bytes:
        """The bytes in one place."""
        return b"".join(self._pieces)

    @data.setter
    def data(self, _: bytes) -> None: ...


def _cut(pieces: Iterable[memoryview], size: int) -> Iterator[list[memoryview]]:
    """Pieces of pieces, in lists of ``size`` bytes each; the last may have fewer."""
    part: list[memoryview] = []
    room = size
    for piece in pieces:
        rest = piece
        while len(rest):
            part.append(rest[:room])
            room -= len(part[-1])
            rest = rest[len(part[-1]) :]
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part
