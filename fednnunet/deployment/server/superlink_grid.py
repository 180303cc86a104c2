"""The grid of a federation across machines: that of a SuperLink, for the ServerApp in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import ServerApp

from fednnunet.deployment.memory import keep_freed_buffers
from fednnunet.deployment.server.flower_internals import (
    SUPERLINK_NODE_ID,
    ConfirmMessageReceivedRequest,
    Node,
    ObjectPullError,
)
from fednnunet.deployment.server.object_files import ObjectFiles
from fednnunet.deployment.server.pending_messages import PendingMessage, PollCounts, is_lost
from fednnunet.deployment.server.reply_transfer import pull_replies
from fednnunet.deployment.server.request_transfer import push_request
from fednnunet.deployment.server.run_connection import RunConnection, RunLost
from fednnunet.errors import ProtocolError
from fednnunet.exchange.flower_internals import ErrorCode, Run, relabel
from fednnunet.exchange.packing import Packer, unpack
from fednnunet.server.local_grid import NodeGrid

log = logging.getLogger(__name__)

MESSAGE_TTL_SECONDS = 30 * 24 * 3600.0
"""The SuperLink discards a message that has waited this long."""
PUSH_ATTEMPTS = 3
LOST_CHECK_SECONDS = 5.0
"""Time between two checks for messages that their nodes have lost."""
FLOWERS_ERRORS: dict[int, str] = {
    ErrorCode.MESSAGE_UNAVAILABLE: "its reply broke off",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its reply is lost",
    ErrorCode.NODE_UNAVAILABLE: "not connected",
}
"""Errors that the SuperLink makes in the place of a reply, in words for the operator."""


class SuperLinkGrid(NodeGrid):
    """A run of Flower's whose ServerApp is this process.

    Arrays are packed into one, replies carry the node that the message was for, and a message that its node has lost
    (it asks for another one, and has not replied) is sent again.

    Args:
        state: folder of the server's state.
        notify: gets a line for the operator.

    Raises:
        ConfigError: there is no server.
        RunLost: it does not answer.
    """

    def __init__(self, state: Path, notify: Callable[[str], None]) -> None:
        keep_freed_buffers()
        self._connection = RunConnection(state, notify)
        self._files = ObjectFiles(state)
        self._pending: dict[str, PendingMessage] = {}
        operator, call = self._connection.operator, self._connection.call
        self._poll_counts = PollCounts(lambda: call(operator.nodes), lambda: call(operator.polls))
        self._last_lost_check = 0.0
        self._names: dict[int, str] = {}

    @property
    def run_id(self) -> int:
        """Flower's id of the run."""
        return self._connection.run_id

    def run_server(self, app: ServerApp) -> None:
        """Run ``app`` on this grid, in the calling thread.

        Raises:
            RunLost: run the app again on another grid; it continues from the last finished round.
        """
        context = Context(self.run_id, self._connection.node_id, node_config={}, state=RecordDict(), run_config={})
        completed = False
        try:
            app(self, context)
            completed = True
        finally:
            self._connection.finish(completed)

    def close(self) -> None:
        """Send no more heartbeats; Flower's run ends with them."""
        self._connection.close()

    # nodes ---------------------------------------------------------------------------------------------

    def get_node_ids(self) -> list[int]:
        """Nodes that are connected now."""
        return list(self._connection.call(self._connection.grid.get_node_ids))

    def names(self) -> dict[int, str]:
        """Name that each node's key was registered under, by node id; where nodes have no keys, that they give."""
        nodes = self._connection.call(self._connection.operator.nodes)
        self._names = {node.node_id: node.name for node in nodes if node.name}
        return dict(self._names)

    def _node(self, node_id: int) -> str:
        """How a node is called in messages."""
        if node_id not in self._names:
            self.names()
        return f"node {self._names.get(node_id, node_id)}"

    # messages ------------------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages, each for one node; returns ids by which to pull their replies."""
        packer = Packer()  # one message at a time: together they need the memory of all
        sent = [self._send(message, packer) for message in messages]
        self._count_polls(sent)
        self._pending.update({one.flower_id: one for one in sent})
        return [one.flower_id for one in sent]

    def _send(self, message: Message, packer: Packer) -> PendingMessage:
        node_id, content = message.metadata.dst_node_id, packer.pack(message.content)

        def push() -> str:
            return push_request(self._connection.client, self._files, self.run_id, packed)

        for _ in range(PUSH_ATTEMPTS):  # a message that was being pushed when the server died is not accepted twice
            packed = Message(content, node_id, message.metadata.message_type, ttl=MESSAGE_TTL_SECONDS)
            flower_id = self._connection.call(push)
            if flower_id:
                break
        else:
            raise RunLost(f"the server accepts no message for {self._node(node_id)}; see its log")
        return PendingMessage(message, flower_id, None)

    def _count_polls(self, sent: Sequence[PendingMessage]) -> None:
        """Count from now on how often the nodes ask: before its message was there, a node could only ask in vain."""
        polls = self._polls()
        for one in sent:
            one.polls = polls.get(one.node_id)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have come in, each once."""
        ids = {self._pending[id_].flower_id: id_ for id_ in message_ids if id_ in self._pending}
        if not ids:
            return []
        # Check before pulling: a message whose reply comes in between is not lost. Check only these messages: another
        # one's reply may wait at the SuperLink because it was not pulled yet, while its node asks for more messages.
        lost = self._find_lost(ids.values())
        replies = []
        pull = partial(pull_replies, self._connection.client, self._files, self.run_id, ids)
        for flower_id, pulled in self._connection.call(lambda: list(pull())):
            id_ = ids[flower_id]
            reply = self._read(pulled, self._pending[id_])
            if reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE and self._is_connected(id_):
                lost.append(id_)  # the node has the whole reply
            else:
                if reply.has_error() and reply.error.code in FLOWERS_ERRORS:
                    self._discard(flower_id)
                replies.append(self._as_reply(reply, self._pending.pop(id_), id_))
        for id_ in lost:
            if id_ in self._pending:
                replies += self._resend(id_)
        return replies

    def _read(self, pulled: Message | ObjectPullError | ProtocolError, sent: PendingMessage) -> Message:
        """A message in any case: an error where the reply did not come, one without a body where it cannot be read."""
        if isinstance(pulled, Message):
            return pulled
        if isinstance(pulled, ObjectPullError):
            return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, str(pulled)), reply_to=sent.message)
        log.warning("%s: %s", self._node(sent.node_id), pulled)
        reply = Message(RecordDict(), reply_to=sent.message)
        relabel(reply, sent.node_id, sent.flower_id)
        return reply

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Wait for no reply to these messages: one that its node has lost counts as replied to."""
        for id_ in message_ids:
            if id_ in self._pending:
                self._pending[id_].is_abandoned = True

    def _find_lost(self, ids: Iterable[str]) -> list[str]:
        if time.monotonic() - self._last_lost_check < LOST_CHECK_SECONDS:
            return []
        self._last_lost_check = time.monotonic()
        polls = self._polls()
        return [id_ for id_ in ids if is_lost(self._pending[id_], polls)]

    def _is_connected(self, id_: str) -> bool:
        return self._pending[id_].node_id in self.get_node_ids()

    def _polls(self) -> dict[int, int]:
        return self._poll_counts.by_node(self.get_node_ids())

    def _resend(self, id_: str) -> list[Message]:
        """Send a lost message again or, where nobody waits for its reply, return an error in its place."""
        sent = self._pending[id_]
        if sent.is_abandoned:
            del self._pending[id_]
            self._discard(sent.flower_id)
            error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the node has lost the message")
            return [self._as_reply(Message(error, reply_to=sent.message), sent, id_)]
        log.warning("message %s is sent to %s again", id_, self._node(sent.node_id))
        self._pending[id_] = again = self._send(sent.message, Packer())
        self._count_polls([again])
        self._discard(sent.flower_id)  # after it is sent again: what both consist of stays
        return []

    def _discard(self, flower_id: str) -> None:
        """Have the server delete what it has of a request that its node does not fetch any more."""
        node, client = Node(node_id=SUPERLINK_NODE_ID), self._connection.client
        request = ConfirmMessageReceivedRequest(node=node, run_id=self.run_id, message_object_id=flower_id)
        self._connection.call(lambda: client.ConfirmMessageReceived(request))

    def _as_reply(self, reply: Message, sent: PendingMessage, id_: str) -> Message:
        """The reply, unpacked and addressed as one to the message that the server app gave.

        Raises:
            ProtocolError: another node has replied.
        """
        node = self._node(sent.node_id)
        if reply.has_content() and reply.metadata.src_node_id != sent.node_id:
            raise ProtocolError(f"{self._node(reply.metadata.src_node_id)} replied in the place of {node}")
        if reply.has_error() and reply.error.code in FLOWERS_ERRORS:
            log.info("%s: %s", node, reply.error.reason)
            reply = Message(Error(reply.error.code, FLOWERS_ERRORS[reply.error.code]), reply_to=sent.message)
        relabel(reply, sent.node_id, id_)  # Flower's own errors come from the SuperLink
        if reply.has_content():
            try:
                reply.content = unpack(reply.content, node)
            except ProtocolError as error:
                log.warning("%s", error)
                reply.content = RecordDict()  # its reader rejects it, as a reply without a body
        return reply

    # the rest of Flower's grid interface -----------------------------------------------------------------

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Not used: the server app takes replies as they come."""
        raise NotImplementedError("replies are taken as they come")

    def create_message(self, *args: Any, **options: Any) -> Message:
        """Create a message as Flower's grid does."""
        return self._connection.grid.create_message(*args, **options)

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._connection.grid.set_run(run)

    @property
    def run(self) -> Run:
        """Run that messages belong to."""
        return self._connection.grid.run
