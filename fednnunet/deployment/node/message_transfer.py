"""Messages between a node and its server, taken apart into the objects that Flower stores.

The message's head names its objects, which are fetched and sent one by one.
"""

from __future__ import annotations

import contextlib

from flwr.app import Message

from fednnunet.deployment.node.fleet_calls import FleetCalls
from fednnunet.deployment.node.flower_internals import (
    ConfirmMessageReceivedRequest,
    Node,
    ObjectPushError,
    ObjectTree,
    PushMessagesRequest,
    iterate_object_tree,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
    pull_objects,
    push_objects,
)
from fednnunet.exchange.assembly import assemble, limited, take_apart
from fednnunet.exchange.flower_internals import set_message_id

PULL_RETRY_SECONDS = 0.1
"""Pause before an object that the server does not have yet is asked for again."""
OBJECTS_AT_ONCE = 8
"""Objects of a message that are in memory twice while they are sent: at most 8 MiB each, except for its body."""
ANY_SESSION = ""
"""Flower accepts an object without the session that it belongs to, if a message waits for it."""


def receive_message(calls: FleetCalls, node: Node, run_id: int, message_id: str, tree: ObjectTree) -> Message:
    """Fetch a message's objects and put it together.

    Args:
        calls: the server's Fleet API.
        node: who fetches.
        run_id: Flower's id of the run.
        message_id: from the message's head.
        tree: ids of its objects.

    Raises:
        ProtocolError: the objects are too large, or are no message.
        Refused: the server does not give them.
        ObjectPullError: the server does not have them.
    """
    pull = make_pull_object_fn_protobuf(lambda request: calls.call(calls.client.PullObject, request), node, run_id)
    contents = pull_objects(
        [part.object_id for part in iterate_object_tree(tree)],
        limited(pull, "the server"),
        initial_backoff=PULL_RETRY_SECONDS,
    )
    calls.call(
        calls.client.ConfirmMessageReceived,
        ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id),
    )
    message = assemble(message_id, contents, "the server")
    set_message_id(message, message_id)
    return message


def send_reply(calls: FleetCalls, node: Node, reply: Message, seconds: float) -> None:
    """Send a reply: its head, then those of its objects that the server lacks.

    Args:
        calls: the server's Fleet API.
        node: who replies.
        reply: to a message of the server.
        seconds: that the node worked on it.

    Raises:
        Refused: the server does not accept it.
        ObjectPushError: the server does not store an object.
    """
    parts = take_apart(reply)
    objects = parts.objects
    request = PushMessagesRequest(
        node=node, messages_list=[parts.head], message_object_trees=[parts.tree], clientapp_runtime_list=[seconds]
    )
    response = calls.call(calls.client.PushMessages, request)
    missing = [object_id for object_id in response.objects_to_push if object_id in objects]
    # None is missing: the server has accepted the head before, and its answer was lost. It still waits for objects.
    session = response.session_id if missing else ANY_SESSION
    push = make_push_object_fn_protobuf(
        lambda request: calls.call(calls.client.PushObject, request), node, reply.metadata.run_id, session
    )
    if not missing:
        for object_id, part in objects.items():
            with contextlib.suppress(ObjectPushError):  # the server has this one
                push(object_id, part.deflate())
        return
    for start in range(0, len(missing), OBJECTS_AT_ONCE):  # Flower copies everything that it is given
        push_objects({id_: objects.pop(id_) for id_ in missing[start : start + OBJECTS_AT_ONCE]}, push)
