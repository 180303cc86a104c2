"""The grid of a federation across machines: Flower's, of a SuperLink, for the ServerApp in this process."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest, SendTaskHeartbeatRequest
from flwr.serverapp import ServerApp
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fednnunet.deployment.node.diagnosis import said
from fednnunet.deployment.server.operator_client import Operator, read_server
from fednnunet.errors import ConfigError, FednnUNetError, ProtocolError
from fednnunet.exchange.packing import pack, unpack
from fednnunet.server.local_grid import NodeGrid

log = logging.getLogger(__name__)

MESSAGE_SECONDS = 30 * 24 * 3600.0
"""A message that has waited so long is thrown away by the SuperLink."""
PUSHES = 3
LOOK_FOR_LOST_SECONDS = 5.0
MAX_PAUSE_SECONDS = 5
"""Between attempts to reach a server that does not answer."""


class RunLost(FednnUNetError):
    """Flower's run is over: the server was away for too long, or was started anew. Nodes and checkpoints are not."""


@dataclass
class Outgoing:
    """A message on its way.

    Attributes:
        message: as it was given.
        flower_id: under which the SuperLink knows it; changes when it is sent again.
        polls: how often its node had asked for messages when it was there; None where that is not known.
        abandoned: nobody waits for its reply any more.
    """

    message: Message
    flower_id: str
    polls: int | None
    abandoned: bool = False


class SuperLinkGrid(NodeGrid):
    """A run of Flower's, as whose ServerApp this process acts.

    Arrays are packed into one, replies carry the node that the message was for, and a message that its node has lost
    (it asks for another, and has not replied) is sent again.

    Args:
        state: folder of the server's state.
        tell: gets a line for the operator.

    Raises:
        ConfigError: there is no server.
        RunLost: it does not answer.
    """

    def __init__(self, state: Path, tell: Callable[[str], None]) -> None:
        self._state = state
        self._tell = tell
        self._operator = Operator(state)
        self._over = False
        self._silent = False
        self._out: dict[str, Outgoing] = {}
        self._keys: dict[int, bytes] = {}
        self._looked = 0.0
        try:
            self.run_id, token = self._operator.start_run()
        except httpx.HTTPError as error:
            raise RunLost(f"the server does not answer: {error}") from None
        self._again = RetryInvoker(
            lambda: exponential(max_delay=MAX_PAUSE_SECONDS),
            (httpx.TransportError, httpx.HTTPStatusError, ObjectPushError),
            max_tries=None,
            max_time=None,
            on_success=lambda _: self._answers(),
            on_backoff=lambda state: self._does_not_answer(state.exception, state.tries),
            should_giveup=self._is_lost,
        )
        self._client = RuntimeHttpClient.from_server_address(
            self._operator.server.control,
            True,
            None,
            [*self._operator.interceptors("flwr-serverapp"), RuntimeTokenHttpInterceptor(token=token)],
            retry_invoker=self._again,
        )
        self._flower = HttpGrid(self._operator.server.control, insecure=True, token=token)
        self._flower._client = self._client
        given = self._reaching(lambda: self._client.PullTaskInput(PullTaskInputRequest()))
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        self._flower.set_run(run_from_proto(given.run))
        self._beats = HeartbeatSender(self._heartbeat)
        self._beats.start()

    def run_server(self, app: ServerApp) -> None:
        """Run ``app`` on this grid, in the calling thread.

        Raises:
            RunLost: to be begun again, on another grid; the app goes on from the last finished round.
        """
        context = Context(self.run_id, TaskIdentity.node_id, node_config={}, state=RecordDict(), run_config={})
        status = SubStatus.FAILED
        try:
            app(self, context)
            status = SubStatus.COMPLETED
        finally:
            self._finish(status)

    def _finish(self, status: str) -> None:
        self._over = True
        try:
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        except (httpx.HTTPError, RunLost) as error:
            log.warning("the server was not told of the end: %s", error)

    def close(self) -> None:
        """Send no more heartbeats; Flower's run ends with them."""
        self._over = True
        if self._beats.is_running:
            self._beats.stop()
        self._client.close()

    # nodes ---------------------------------------------------------------------------------------------

    def get_node_ids(self) -> list[int]:
        """Nodes that are connected now."""
        return list(self._reaching(self._flower.get_node_ids))

    def names(self) -> dict[int, str]:
        """Node id to the name that its key was registered under; empty where nodes have no keys."""
        return {node.node_id: node.name for node in self._reaching(self._operator.nodes) if node.name}

    # messages ------------------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages, each for one node; ids to ask for their replies by."""
        ids = []
        for message in messages:  # one at a time: together they need the memory of all
            sent = self._send(message)
            self._out[sent.flower_id] = sent
            ids.append(sent.flower_id)
        return ids

    def _send(self, message: Message) -> Outgoing:
        node, content = message.metadata.dst_node_id, pack(message.content)
        for _ in range(PUSHES):  # one that was pushed when the server died is not taken twice
            packed = Message(content, node, message.metadata.message_type, ttl=MESSAGE_SECONDS)
            (flower_id,) = self._reaching(partial(self._pushed, packed))
            if flower_id:
                break
        else:
            raise RunLost(f"the server takes no message for node {node}; see its log")
        # Counted now: until the message was there, its node could only ask in vain.
        return Outgoing(message, flower_id, self._polls().get(node))

    def _pushed(self, message: Message) -> list[str]:
        return list(self._flower.push_messages([message]))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have come in, each once."""
        asked = {self._out[id_].flower_id: id_ for id_ in message_ids if id_ in self._out}
        if not asked:
            return []
        # Before the look for replies: one that comes in between is not lost. Nor is one that waits at the SuperLink
        # because it was not asked for yet, though its node asks for more: so of these messages alone.
        lost = self._lost(asked.values())
        replies = []
        for reply in self._reaching(lambda: list(self._flower.pull_messages(asked))):
            id_ = asked[reply.metadata.reply_to_message_id]
            sent = self._out.pop(id_)
            replies.append(self._relabel(reply, sent, id_))
        for id_ in lost:
            if id_ in self._out:
                replies += self._mend(id_)
        return replies

    def _mend(self, id_: str) -> list[Message]:
        """Send a lost message again, or, where nobody waits for its reply, say that there will be none."""
        sent = self._out[id_]
        node = sent.message.metadata.dst_node_id
        if sent.abandoned:
            del self._out[id_]
            error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the node has lost the message")
            return [self._relabel(Message(error, reply_to=sent.message), sent, id_)]
        log.warning("message %s is sent to node %d again", id_, node)
        self._out[id_] = self._send(sent.message)
        return []

    def abandon(self, message_ids: Iterable[str]) -> None:
        """A message that its node has lost is not sent again; it counts as replied to."""
        for id_ in message_ids:
            if id_ in self._out:
                self._out[id_].abandoned = True

    def _relabel(self, reply: Message, sent: Outgoing, id_: str) -> Message:
        """The reply as the one to the message that was given."""
        node = sent.message.metadata.dst_node_id
        if reply.has_content() and reply.metadata.src_node_id != node:
            raise ProtocolError(f"node {reply.metadata.src_node_id} replied in the place of node {node}")
        # Flower's own errors come from the SuperLink.
        reply.metadata.__dict__.update(_src_node_id=node, _reply_to_message_id=id_)
        if reply.has_content():
            try:
                reply.content = unpack(reply.content, f"node {node}")
            except ProtocolError as error:
                log.warning("%s", error)
                reply.content = RecordDict()  # refused by who reads it, as a reply without a body
        return reply

    def _polls(self) -> dict[int, int]:
        """Node id to how often the node has asked for a message."""
        if not set(self.get_node_ids()) <= self._keys.keys():
            self._keys = {node.node_id: node.public_key for node in self._reaching(self._operator.nodes)}
        counts = self._reaching(self._operator.polls)
        return {node: counts.get(key, 0) for node, key in self._keys.items()}

    def _lost(self, ids: Iterable[str]) -> list[str]:
        """Messages whose nodes have asked twice for another since, which a node at work does not do."""
        if time.monotonic() - self._looked < LOOK_FOR_LOST_SECONDS:
            return []
        self._looked = time.monotonic()
        counts = self._polls()
        lost = []
        for id_ in ids:
            sent = self._out[id_]
            count = counts.get(sent.message.metadata.dst_node_id)
            if count is None or sent.polls is None:
                continue
            sent.polls = min(sent.polls, count)  # a SuperLink that was started again counts anew
            if count - sent.polls > 2:
                lost.append(id_)
        return lost

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Flower's grid interface; the server app takes replies as they come, instead."""
        raise NotImplementedError("replies are taken as they come")

    def create_message(self, *args: Any, **options: Any) -> Message:
        """Flower's grid interface."""
        return self._flower.create_message(*args, **options)

    def set_run(self, run: Run) -> None:
        """Flower's grid interface."""
        self._flower.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's grid interface."""
        return self._flower.run

    # the connection ------------------------------------------------------------------------------------

    def _reaching(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns.

        Raises:
            RunLost: the run is over, or the server was started anew.
        """
        try:
            return self._again.invoke(call)
        except (httpx.HTTPStatusError, httpx.TransportError) as error:
            raise RunLost(f"Flower's run {self.run_id} is over ({error})") from error

    def _heartbeat(self) -> bool:
        try:
            return self._over or self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except httpx.HTTPError as error:
            log.info("no heartbeat: %s", error)
            return self._over

    def _is_lost(self, error: Exception) -> bool:
        """Whether trying again is of no use: the server is another one now, or does not know this run any more."""
        if self._over:
            return True
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code < 500
        try:
            return read_server(self._state) != self._operator.server
        except ConfigError:
            return True

    def _does_not_answer(self, error: Exception | None, tries: int) -> None:
        if not self._silent and tries > 1:
            self._silent = True
            self._tell(f"{self._problem(error)}; waiting for it")

    def _problem(self, error: Exception | None) -> str:
        if isinstance(error, httpx.HTTPStatusError):
            return f"the server answers {said(error.response)}"
        if isinstance(error, ObjectPushError):  # Flower does not tell why
            free = shutil.disk_usage(self._state).free
            return f"the server does not store a message; {free / 1e6:.0f} MB are free at {self._state}"
        return f"the server does not answer ({type(error).__name__}: {error})"

    def _answers(self) -> None:
        if self._silent:
            self._silent = False
            self._tell("the server answers again")
