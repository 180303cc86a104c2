"""A node's connection to its server: a SuperNode that runs no code from the network.

It speaks Flower's Fleet API as Flower's own SuperNode does (key, heartbeats, messages as objects). But Flower's
installs and runs the app that the server sends, in a new process for every message; this one hands every message to
the ClientApp that is installed here. It stores nothing: the server sends a message again that the node has lost.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from flwr.app import Context, Message, RecordDict

from fednnunet.client_app import app
from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.keys import make_node_key, read_private_key
from fednnunet.deployment.memory import exempt_from_collection, keep_freed_buffers
from fednnunet.deployment.node.diagnosis import explain_other_version, explain_rejection
from fednnunet.deployment.node.fleet_calls import RETRY_SECONDS, FleetCalls, Refused
from fednnunet.deployment.node.flower_internals import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ActivateNodeRequest,
    DeactivateNodeRequest,
    HeartbeatSender,
    Node,
    ObjectPullError,
    ObjectPushError,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
    SendNodeHeartbeatRequest,
)
from fednnunet.deployment.node.message_transfer import receive_message, send_reply
from fednnunet.deployment.supervision import log_and_notify
from fednnunet.errors import ProtocolError
from fednnunet.exchange.flower_internals import act_as
from fednnunet.exchange.packing import pack, unpack
from fednnunet.files import write_atomically
from fednnunet.processes import end_with_parent

log = logging.getLogger(__name__)

LOG_FILE = "connection.log"
POLL_SECONDS = (0.1, 1.0)
"""Pause between two requests for a message: at first, and at most. A node at work on a message makes none."""
POLL_GROWTH = 1.1
"""Factor by which each pause is longer than the one before: a server that is quick gets a quick node."""
PAUSE_PER_ANSWER = 10.0
"""A pause is at least so many times as long as the last answer took: many nodes leave a busy server time to work."""
LONGEST_PAUSE_S = 5.0
"""Pause at most, however long an answer took."""


class NodeConnection:
    """The connection of one node.

    Args:
        node_file: configuration of the node.
        node_config: what the ClientApp sees: the worker's address and key file.
        notify: gets a line for the operator.

    Attributes:
        calls: the server's Fleet API.
        node: what the server knows the node as; empty before it has joined.
    """

    def __init__(self, node_file: NodeFile, node_config: dict[str, str], notify: Callable[[str], None]) -> None:
        self.node_file = node_file
        self.node_config = node_config
        self.notify = notify
        self.node = Node()
        self.calls = FleetCalls(node_file, read_private_key(own_key(node_file)), notify)
        self._id_file = node_file.folder / "node_id"

    def serve(self) -> None:
        """Join, and hand messages to the ClientApp until the process ends."""
        self._join()
        HeartbeatSender(self.send_heartbeat).start()
        pause = POLL_SECONDS[0]
        while True:
            try:
                asked = time.monotonic()
                if self.serve_one():
                    pause = POLL_SECONDS[0]
                else:
                    time.sleep(pause_after(time.monotonic() - asked, pause))
                    pause = min(pause * POLL_GROWTH, POLL_SECONDS[1])
            except Refused as refused:
                self.notify(f"the server refused: {refused}; joining again")
                time.sleep(RETRY_SECONDS[-1])
                self._join()

    def leave(self) -> None:
        """Tell the server that the node goes, which it would only notice after a minute otherwise."""
        with contextlib.suppress(httpx.HTTPError, Refused):
            self.calls.client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))

    def _join(self) -> None:
        # For the server, a process that was killed is still connected, and no node may connect twice.
        earlier = self._earlier_node()
        if earlier is not None:
            with contextlib.suppress(Refused):
                self.calls.call(self.calls.client.DeactivateNode, DeactivateNodeRequest(node_id=earlier.node_id))
        activation = ActivateNodeRequest(
            public_key=self.calls.public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        last_problem = ""
        pauses = itertools.chain(RETRY_SECONDS, itertools.repeat(RETRY_SECONDS[-1]))
        while True:
            try:
                if self.node_file.insecure:
                    request = RegisterNodeFleetRequest(public_key=self.calls.public_key)
                    with contextlib.suppress(Refused):  # known from before
                        self.calls.call(self.calls.client.RegisterNode, request)
                self.node = Node(node_id=self.calls.call(self.calls.client.ActivateNode, activation).node_id)
                self._store_id()
                break
            except Refused as refused:
                if str(refused) != last_problem:
                    last_problem = str(refused)
                    why = explain_rejection(last_problem, self.node_file)
                    self.notify(f"the server does not let this node in: {why}; the node keeps trying")
                time.sleep(next(pauses))  # short at first: a key may be registered in a moment
        if other_version := explain_other_version(self.node_file):
            self.notify(other_version)
        self.notify(f"connected to {self.node_file.server}")

    def _earlier_node(self) -> Node | None:
        """What the server knew this node as; None where it has not joined, or the file is damaged."""
        try:
            return Node(node_id=int(self._id_file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # joining then takes until the server misses the process before
            log.warning("%s cannot be read: %s", self._id_file, error)
            return None

    def _store_id(self) -> None:
        try:
            write_atomically(self._id_file, str(self.node.node_id))
        except OSError as error:  # a full disk, for example; the id is only needed after a kill
            log.warning("%s cannot be written: %s", self._id_file, error)

    def send_heartbeat(self) -> bool:
        """Tell the server that the node is alive; whether it accepted that."""
        request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            return bool(self.calls.client.SendNodeHeartbeat(request).success)
        except (httpx.HTTPError, Refused, ValueError) as error:
            log.info("no heartbeat: %s", error)
            return False

    def serve_one(self) -> bool:
        """Work on a message, if there is one; whatever happens to it, the next one may come.

        Raises:
            Refused: the server does not know this node any more.
        """
        response = self.calls.call(self.calls.client.PullMessages, PullMessagesRequest(node=self.node))
        if not response.messages_list:
            return False
        head = response.messages_list[0].metadata
        log.info("message %s: %s", head.message_id, head.message_type)
        try:
            message = receive_message(
                self.calls, self.node, head.run_id, head.message_id, response.message_object_trees[0]
            )
            started = time.monotonic()
            reply = self._work(message)
            send_reply(self.calls, self.node, reply, time.monotonic() - started)
        except (Refused, ObjectPullError, ObjectPushError, ProtocolError, ValueError) as error:
            # The run is over, or the server has gone in the meantime: it asks again, and gets the stored reply.
            log.warning("message %s is dropped: %s: %s", head.message_id, type(error).__name__, error)
        except Exception:  # whatever a server sends, the connection lives on
            log.exception("message %s is dropped", head.message_id)
        return True

    def _work(self, message: Message) -> Message:
        run_id, node_id = message.metadata.run_id, self.node.node_id
        act_as(node_id, run_id)
        message.content = unpack(message.content, "the server")
        context = Context(run_id, node_id, node_config=dict(self.node_config), state=RecordDict(), run_config={})
        reply = app(message, context)
        message.content = RecordDict()  # a reply can be as large: not both at once
        if reply.has_content():
            reply.content = pack(reply.content)
        return reply


def pause_after(answer_s: float, least_s: float) -> float:
    """Seconds until a node asks for a message again.

    Args:
        answer_s: seconds that the server took to say that there is none.
        least_s: seconds that a node waits for a server which answers at once.
    """
    return max(least_s, min(PAUSE_PER_ANSWER * answer_s, LONGEST_PAUSE_S))


def own_key(node_file: NodeFile) -> Path:
    """File of the node's private key; without keys one is made, so that the server recognizes the node."""
    if node_file.key is not None:
        return node_file.key
    if not (node_file.folder / "node.key").is_file():
        make_node_key(node_file.folder)
    return node_file.folder / "node.key"


def run_connection(node_file: NodeFile, node_config: dict[str, str], log_file: Path) -> None:
    """Entry of the connection's process: it has its own log, and ends with its parent.

    Args:
        node_file: configuration of the node.
        node_config: what the ClientApp sees.
        log_file: takes what this process and its libraries log; lines for the operator go to the terminal, too.
    """
    keep_freed_buffers()
    notify = log_and_notify(log_file)
    end_with_parent()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each of thousands of requests

    connection = NodeConnection(node_file, node_config, notify)
    exempt_from_collection()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        connection.serve()
    finally:
        connection.leave()
