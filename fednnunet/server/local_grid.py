"""The local grid: Flower's messages on one machine, without ports.

The ServerApp, the strategy and the ClientApp are those that run across hospitals; only the grid between them
differs.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fednnunet.exchange.flower_internals import ErrorCode, Run, act_as, set_message_id

RUN_ID = 1
SERVER_NODE_ID = 0
POLL_SECONDS = 0.25
"""Seconds between two polls for replies at a SuperLink, or for nodes at any grid."""
AHEAD_PER_WORKER = 2
"""Messages per worker, counted from the oldest without a read reply; later ones wait, so that few replies are held."""


@dataclass
class _Queue:
    """Messages for the nodes of one worker.

    Attributes:
        waiting: messages, each with its number in the order of all.
        is_busy: whether the worker is at work on one, or is about to be.
    """

    waiting: deque[tuple[int, Message]] = field(default_factory=deque)
    is_busy: bool = False


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
        parallel: number of messages worked on at the same time; the others wait.
        workers: nodes of each worker, which gets their messages one at a time, in order; None for a worker per node.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Mapping[int, Mapping[str, str]],
        parallel: int,
        workers: Iterable[Collection[int]] | None = None,
    ) -> None:
        self._client_app = client_app
        self._contexts = {
            node: Context(run_id=RUN_ID, node_id=node, node_config=dict(config), state=RecordDict(), run_config={})
            for node, config in nodes.items()
        }
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="node")
        hosted = {worker: _Queue() for worker in map(tuple, workers or ([node] for node in nodes))}
        self._queues = list(hosted.values())
        self._queue_of = {node: queue for worker, queue in hosted.items() for node in worker}
        self._most_ahead = AHEAD_PER_WORKER * parallel
        self._numbers = itertools.count()
        self._unread: dict[str, int] = {}
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
        with self._arrived:
            for message in messages:
                id_ = str(uuid.uuid4())
                set_message_id(message, id_)
                ids.append(id_)
                self._unread[id_] = next(self._numbers)
                self._queue_of[message.metadata.dst_node_id].waiting.append((self._unread[id_], message))
            self._start_work()
        return ids

    def abandon(self, message_ids: Iterable[str]) -> None:
        """No longer hold up others for these replies."""
        with self._arrived:
            for id_ in message_ids:
                self._unread.pop(id_, None)
            self._start_work()

    def _start_work(self) -> None:
        """Hand the next message to each worker that is free, unless it is too far ahead; called with the lock."""
        end = min(self._unread.values(), default=math.inf) + self._most_ahead
        for queue in self._queues:
            if queue.waiting and not queue.is_busy and queue.waiting[0][0] < end:
                queue.is_busy = True
                self._pool.submit(self._work, queue, queue.waiting.popleft()[1])

    def _work(self, queue: _Queue, message: Message) -> None:
        try:
            reply = self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001  the server learns of it from the reply, as in Flower
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        with self._arrived:
            self._replies[message.metadata.message_id] = reply
            queue.is_busy = False
            self._start_work()
            self._arrived.notify_all()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have come in, each once."""
        with self._arrived:
            ids = [id_ for id_ in message_ids if id_ in self._replies]
            for id_ in ids:
                self._unread.pop(id_, None)
            self._start_work()
            return [self._replies.pop(id_) for id_ in ids]

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
        self.abandon(waiting)
        return replies

    def close(self) -> None:
        """Take no more messages; work under way is left to end with its node."""
        with self._arrived:
            for queue in self._queues:
                queue.waiting.clear()
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
