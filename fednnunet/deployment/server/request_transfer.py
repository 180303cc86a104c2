"""Requests to nodes, taken apart into the objects that the SuperLink stores; large ones it gets as files."""

from __future__ import annotations

import errno

from flwr.app import Message

from fednnunet.deployment.server.flower_internals import (
    SUPERLINK_NODE_ID,
    Node,
    ObjectPushError,
    PushAppMessagesRequest,
    RuntimeHttpClient,
    make_push_object_fn_protobuf,
)
from fednnunet.deployment.server.object_files import LEAST_BYTES, ObjectFiles
from fednnunet.exchange.assembly import take_apart
from fednnunet.exchange.flower_internals import Chunk
from fednnunet.files import DISK_FULL

PASSING = (*DISK_FULL, errno.ENOENT)
"""Errors of files after which the message is pushed again; a server that starts removes halves of files."""


def push_request(client: RuntimeHttpClient, files: ObjectFiles, run_id: int, message: Message) -> str:
    """Push a message for a node.

    Args:
        client: of the Runtime API.
        files: of the SuperLink on this machine.
        run_id: Flower's id of the run.
        message: with content.

    Returns:
        Its id; empty where the SuperLink does not accept it.

    Raises:
        ObjectPushError: the SuperLink does not store an object, or the disk is full.
    """
    parts = take_apart(message)
    answer = client.PushMessages(PushAppMessagesRequest(messages_list=[parts.head], message_object_trees=[parts.tree]))
    push = make_push_object_fn_protobuf(client.PushObject, Node(node_id=SUPERLINK_NODE_ID), run_id, answer.session_id)
    for object_id in answer.objects_to_push:
        part = parts.objects[object_id]
        if isinstance(part, Chunk) and part.size >= LEAST_BYTES:
            try:
                files.write(object_id, part.parts())
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                raise ObjectPushError(object_id, run_id, answer.session_id) from error
            push(object_id, b"")
        else:
            push(object_id, part.deflate())
    (message_id,) = answer.message_ids
    return str(message_id)
