"""The local grid: Flower's messages on one machine, without ports.

The ServerApp, the strategy and the ClientApp are those that run across hospitals; only the grid between them
differs.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fednnunet.exchange.flower_internals import ErrorCode, Run, act_as, set_message_id

RUN_ID = 1
SERVER_NODE_ID = 0
POLL_SECONDS = 0.25
"""Seconds between two polls for replies at a SuperLink, or for nodes at any grid."""


class NodeGrid(Grid):
    """A Flower grid, and what the server app needs of one beyond Flower's interface."""

    def names(self) -> dict[int, str]:
        """Node id to the name that a node's key stands for; empty where nodes have no keys."""
        return {}

    def abandon(self, message_ids: Iterable[str]) -> None:
        """No longer wait for these replies; they may still be pulled, to see that the nodes are free."""


class LocalGrid(NodeGrid):
    """Hands messages to a ClientApp in threads of this process.

    Args:
        client_app: gets every message.
        nodes: node id to the ``node_config`` that the ClientApp sees in its context.
        max_parallel_nodes: number of messages worked on at the same time; the others wait.
    """

    def __init__(self, client_app: ClientApp, nodes: Mapping[int, Mapping[str, str]], max_parallel_nodes: int) -> None:
        self._client_app = client_app
        self._contexts = {
            node: Context(run_id=RUN_ID, node_id=node, node_config=dict(config), state=RecordDict(), run_config={})
            for node, config in nodes.items()
        }
        self._pool = ThreadPoolExecutor(max_parallel_nodes, thread_name_prefix="node")
        self._replies: dict[str, Message] = {}
        self._arrived = threading.Condition()
        self._run = Run.create_empty(RUN_ID)
        act_as(SERVER_NODE_ID, RUN_ID)

    def run_server(self, app: ServerApp) -> None:
        """Run ``app`` on this grid, in the calling thread."""
        app(
            self,
            Context(run_id=RUN_ID, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config={}),
        )

    def set_run(self, run: Run) -> None:
        """Flower's grid interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's grid interface."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Flower's grid interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start work on ``messages``; their ids."""
        ids = []
        for message in messages:
            set_message_id(message, str(uuid.uuid4()))
            ids.append(message.metadata.message_id)
            self._pool.submit(self._work, message)
        return ids

    def _work(self, message: Message) -> None:
        try:
            reply = self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001  the server learns of it from the reply, as in Flower
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        with self._arrived:
            self._replies[message.metadata.message_id] = reply
            self._arrived.notify_all()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have come in, each once."""
        with self._arrived:
            return [self._replies.pop(id_) for id_ in message_ids if id_ in self._replies]

    def wait_for_reply(self, message_ids: Iterable[str], timeout: float | None) -> None:
        """Block until a reply to one of ``message_ids`` is there, or ``timeout`` seconds passed."""
        ids = list(message_ids)
        with self._arrived:
            # In slices: a wait without time-out cannot be interrupted by Ctrl-C on every platform.
            deadline = None if timeout is None else time.monotonic() + timeout
            while not any(id_ in self._replies for id_ in ids):
                if deadline is not None and time.monotonic() >= deadline:
                    return
                self._arrived.wait(1.0 if deadline is None else min(1.0, max(0.0, deadline - time.monotonic())))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies to ``messages``; those that did not come in time are absent."""
        waiting, replies = list(self.push_messages(messages)), []
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting and (deadline is None or time.monotonic() < deadline):
            self.wait_for_reply(waiting, None if deadline is None else deadline - time.monotonic())
            for reply in self.pull_messages(waiting):
                waiting.remove(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def close(self) -> None:
        """Take no more messages; work under way is left to end with its node."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def wait_for_next_poll(grid: Grid, message_ids: Iterable[str], seconds: float = POLL_SECONDS) -> None:
    """Wait before the next poll of any Flower grid: :data:`POLL_SECONDS`, or ``seconds`` if that is sooner.

    The local grid ends the wait at a reply to one of ``message_ids``.
    """
    seconds = max(0.0, min(POLL_SECONDS, seconds))
    if isinstance(grid, LocalGrid):
        grid.wait_for_reply(message_ids, seconds)
    else:
        time.sleep(seconds)
