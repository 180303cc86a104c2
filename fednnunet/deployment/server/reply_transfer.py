"""Replies of nodes, fetched from the SuperLink object by object, or from its files, and put together.

As Flower's grid does, but by what the SuperLink has checked: who replied, and to what, stands in a reply's head, of
which the gateway lets each node write its own only. A reply that cannot be read is no error of the server app's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message

from fednnunet.deployment.server.flower_internals import (
    SUPERLINK_NODE_ID,
    ConfirmMessageReceivedRequest,
    Node,
    ObjectPullError,
    ObjectUnavailableError,
    PullAppMessagesRequest,
    RuntimeHttpClient,
    iterate_object_tree,
    make_pull_object_fn_protobuf,
    pull_objects,
)
from fednnunet.deployment.server.object_files import ObjectFiles
from fednnunet.errors import ProtocolError
from fednnunet.exchange.assembly import assemble, limited
from fednnunet.exchange.flower_internals import relabel, set_message_id

RETRY_SECONDS = (0.05, 2.0)
"""Pause before a part that is still on its way from the node is asked for again: at first, and at most."""
LOOK_SECONDS = 0.02
"""Time between two looks for its file in such a pause, which cost nothing."""


def pull_replies(
    client: RuntimeHttpClient, files: ObjectFiles, run_id: int, message_ids: Iterable[str]
) -> Iterator[tuple[str, Message | ObjectPullError | ProtocolError]]:
    """Replies to messages that have come in, each once.

    Args:
        client: of the Runtime API.
        files: of the SuperLink on this machine, which has compared what is in them with their names.
        run_id: Flower's id of the run.
        message_ids: of the messages.

    Yields:
        The id of a message, and the reply to it; in its place an ``ObjectPullError`` where a part of it did not come,
        or a ``ProtocolError`` where it cannot be read.
    """
    node = Node(node_id=SUPERLINK_NODE_ID)
    answer = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
    for head, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
        reply_to, id_ = head.metadata.reply_to_message_id, head.metadata.message_id
        contents: dict[str, bytes] | ProtocolError
        pull = _from_files_first(files, make_pull_object_fn_protobuf(client.PullObject, node, run_id))
        try:
            contents = pull_objects(
                [part.object_id for part in iterate_object_tree(tree)],
                limited(pull, "the node"),
                max_tries_per_object=None,
                initial_backoff=0.0,  # the pause is in the pull
            )
        except ObjectPullError as error:
            yield reply_to, error
            continue
        except ProtocolError as error:
            contents = error
        client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=id_))
        if isinstance(contents, ProtocolError):
            yield reply_to, contents
        else:
            yield reply_to, _reply(id_, contents, head.metadata.src_node_id, reply_to)


def _from_files_first(files: ObjectFiles, pull: Callable[[str], bytes]) -> Callable[[str], bytes]:
    pauses: dict[str, float] = {}

    def pull_object(object_id: str) -> bytes:
        content = files.read(object_id)
        if content is not None:
            return content
        try:
            return pull(object_id)
        except ObjectUnavailableError:
            pause = pauses.get(object_id, RETRY_SECONDS[0])
            pauses[object_id] = min(2 * pause, RETRY_SECONDS[1])
            for _ in range(round(pause / LOOK_SECONDS)):
                time.sleep(LOOK_SECONDS)
                if files.exists(object_id):
                    break
            raise

    return pull_object


def _reply(id_: str, contents: dict[str, bytes], src_node_id: int, reply_to: str) -> Message | ProtocolError:
    try:
        message = assemble(id_, contents, "the node")
    except ProtocolError as error:
        return error
    set_message_id(message, id_)
    relabel(message, src_node_id, reply_to)
    return message
