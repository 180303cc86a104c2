"""Requests to nodes that may be away, late or restarted, and their replies, over any Flower grid."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

from flwr.app import Message

from fednnunet.errors import NodeError
from fednnunet.exchange.error_codes import ERROR_CODES
from fednnunet.exchange.flower_internals import ErrorCode
from fednnunet.server.local_grid import LocalGrid, NodeGrid, wait_for_next_poll
from fednnunet.server.node_messages import copy_request
from fednnunet.server.run_observer import RunObserver

log = logging.getLogger(__name__)

UNREACHABLE = {
    ERROR_CODES["unreachable"],
    ERROR_CODES["unavailable"],
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
}
"""Errors that pass: they say nothing of a node's work, only that its reply did not come."""
RETRY_PAUSES_S = (0.0, 5.0, 15.0, 60.0)
"""Seconds before a connected node gets a request again, by how often it failed; the last for all further times."""
REMIND_SECONDS = 600.0
"""Seconds between two messages that the federation waits for a node."""


Whole: TypeAlias = Callable[[Message], Message | None]
"""Given a request whose node does not have what its steps start from: the same with whole layers; None if it is so."""


class NodeClient:
    """Sends requests to nodes and yields their replies.

    Where nodes are restarted when they die (``wait_for_nodes``), one that cannot be reached is no failure: a round that
    has enough nodes goes on without it; otherwise the federation waits, and sends the request again when it is back.

    Args:
        grid: the local one, or Flower's of a SuperLink.
        observer: is notified of the nodes that the federation waits for.
        wait_for_nodes: whether nodes come back.
    """

    def __init__(self, grid: NodeGrid, observer: RunObserver | None = None, wait_for_nodes: bool = False) -> None:
        self.grid = grid
        self.wait_for_nodes = wait_for_nodes
        self.names = grid.names()
        self.observer = observer or RunObserver()
        self._late: dict[str, int] = {}
        self._absent: set[int] = set()

    def name(self, node: int) -> str:
        """The node's name; its id before it is known."""
        return self.names.get(node, str(node))

    def candidates(self, names: Collection[str] | None) -> list[int]:
        """Nodes that are connected, without those whose keys stand for other names than ``names`` (None takes any)."""
        online = self.grid.get_node_ids()
        if not self.names.keys() >= set(online):
            self.names = self.grid.names() | self.names
        return sorted(n for n in online if names is None or self.names.get(n) is None or self.names[n] in names)

    def wait_until_connected(self, nodes: Collection[int], min_replies: int) -> list[int]:
        """Wait until so many of ``nodes`` can take a request that ``min_replies`` may come.

        Returns:
            Nodes that are connected, and not at work on a request whose reply came too late; all of ``nodes`` where
            nodes do not come back.
        """
        if not self.wait_for_nodes:
            return list(nodes)
        absences = AbsenceReporter(self.observer)
        while True:
            self._drop_late()
            online, late = set(self.grid.get_node_ids()), set(self._late.values())
            free = [node for node in nodes if node in online - late]
            if len(free) >= min(min_replies, len(nodes)):
                absences.end()
                self._report_absent(nodes, free)
                return free
            away = [node for node in nodes if node not in free]
            absences.report({self.name(node): "still at work" if node in online else "not connected" for node in away})
            wait_for_next_poll(self.grid, list(self._late))

    def _report_absent(self, nodes: Collection[int], free: Collection[int]) -> None:
        for node in nodes:
            if node in free and node in self._absent:
                self._absent.remove(node)
                self.observer.on_message(f"node {self.name(node)} is back")
            elif node not in free and node not in self._absent:
                self._absent.add(node)
                self.observer.on_message(f"node {self.name(node)} is away; the federation goes on without it")

    def stream(
        self,
        requests: Sequence[Message],
        timeout: float | None,
        min_replies: int | None = None,
        whole: Whole = lambda _: None,
    ) -> Iterator[Message]:
        """Send ``requests`` and yield each reply when it is there.

        Args:
            requests: one per node.
            timeout: seconds; replies that come later are absent and thrown away. None waits without limit. Where nodes
                come back, a federation that has too few replies by then goes on waiting.
            min_replies: while so many can still come, nodes that cannot be reached are left out; None for one reply of
                every node.
            whole: what a node is sent that does not have what the steps in its request start from.
        """
        least = len(requests) if min_replies is None else min_replies
        pending = PendingReplies(self, requests, timeout, least, whole)
        while not pending.is_done:
            is_overdue = pending.is_overdue  # before replies are pulled: none that is there expires
            for reply in self._pull(pending.message_ids, is_overdue):
                if pending.on_reply(reply):
                    yield reply
                del reply  # of the size of a model: not kept while the next one is pulled
            pending.on_tick(is_overdue)
            if not pending.is_done:
                wait_for_next_poll(self.grid, pending.message_ids, pending.seconds_left)
        pending.absences.end()
        self._late.update(pending.message_ids)
        self.grid.abandon(pending.message_ids)

    def _pull(self, message_ids: Mapping[str, int], is_overdue: bool) -> Iterator[Message]:
        if isinstance(self.grid, LocalGrid) or not message_ids:
            yield from self.grid.pull_messages(list(message_ids))
            return
        # From a SuperLink in the order of the requests, one at a time: what is early waits there, and not in memory
        # here. Nodes that are gone do not hold up the others, nor does a slow one after the deadline.
        online: set[int] | None = None
        is_next = True
        for id_, node in list(message_ids.items()):
            if not (is_next or is_overdue):
                online = set(self.grid.get_node_ids()) if online is None else online
                if node in online:
                    continue
            is_there = False
            for reply in self.grid.pull_messages([id_]):
                is_there = True
                yield reply
                del reply
            is_next = is_next and is_there

    def _drop_late(self) -> None:
        for reply in self.grid.pull_messages(list(self._late)) if self._late else ():
            node = self._late.pop(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            log.warning("the reply of node %s comes too late; it is not used", self.name(node))


class PendingReplies:
    """Requests without a reply, and which of them are sent again when.

    Args:
        client: sends them; says whether nodes come back.
        requests: one per node; sent at once.
        timeout: seconds for all of them; None for no limit.
        min_replies: number of replies without which it waits longer, where nodes come back.
        whole: see :meth:`NodeClient.stream`.

    Attributes:
        message_ids: id of each request without a reply, to its node.
        absences: notifies the observer of the nodes that the federation waits for.
    """

    def __init__(
        self,
        client: NodeClient,
        requests: Sequence[Message],
        timeout: float | None,
        min_replies: int,
        whole: Whole = lambda _: None,
    ) -> None:
        self.message_ids: dict[str, int] = {}
        self.absences = AbsenceReporter(client.observer)
        self._client = client
        self._requests = {request.metadata.dst_node_id: request for request in requests}
        self._min_replies = min_replies
        self._whole = whole
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._replies = 0
        self._failures: Counter[int] = Counter()
        self._away: dict[int, tuple[str, float]] = {}
        """Node to why it does not reply, and the time from which on it may get the request again."""
        self._expired = False
        self._send(requests)

    @property
    def is_done(self) -> bool:
        """Whether no reply is waited for any more."""
        return self._expired or not (self.message_ids or self._away)

    @property
    def is_overdue(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; infinity without one, and when it has passed without enough replies."""
        left = self._deadline - time.monotonic()
        return left if left > 0 else math.inf

    def on_reply(self, reply: Message) -> bool:
        """Take note of a reply.

        Returns:
            Whether it counts; otherwise it is a second one, or its node gets the request again.
        """
        node = self.message_ids.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            name = self._client.name(reply.metadata.src_node_id)
            log.warning("node %s replied twice; its second reply is not read", name)
            return False
        if reply.has_error() and reply.error.code == ERROR_CODES["reference"]:
            request = self._whole(self._requests[node])
            if request is not None:
                self._requests[node] = request
                self._send([request])
                return False
        is_needed = self._replies + len(self.message_ids) < self._min_replies
        if self._client.wait_for_nodes and is_needed and is_unreachable(reply):
            pause = RETRY_PAUSES_S[min(self._failures[node], len(RETRY_PAUSES_S) - 1)]
            self._away[node] = (reply.error.reason or "its reply is lost").rstrip(". "), time.monotonic() + pause
            self._failures[node] += 1
            return False
        self._replies += reply.has_content()
        return True

    def on_tick(self, is_overdue: bool) -> None:
        """Send requests again to nodes that are back; end if the time is over and there are enough replies.

        Args:
            is_overdue: whether the deadline had passed before all replies that are there were pulled.
        """
        now = time.monotonic()
        if self._away:
            back = [
                node for node in self._client.grid.get_node_ids() if node in self._away and self._away[node][1] <= now
            ]
            self._send([copy_request(self._requests[node]) for node in back])
            self.absences.report({self._client.name(node): reason for node, (reason, _) in self._away.items()})
            for node in back:
                del self._away[node]
        if not is_overdue:
            return
        self._expired = not self._client.wait_for_nodes or self._replies >= self._min_replies
        if not self._expired:
            late = {self._client.name(node): "has not replied in time" for node in self.message_ids.values()}
            self.absences.report(late)

    def _send(self, requests: Sequence[Message]) -> None:
        if requests:
            nodes = [request.metadata.dst_node_id for request in requests]
            self.message_ids.update(zip(self._client.grid.push_messages(requests), nodes, strict=True))


class AbsenceReporter:
    """Tells an observer of nodes that the federation waits for, once each, and again after a while."""

    def __init__(self, observer: RunObserver) -> None:
        self._observer = observer
        self._reported: dict[str, float] = {}

    def report(self, reasons: Mapping[str, str]) -> None:
        """The federation waits for these nodes: name to reason."""
        now = time.monotonic()
        for name, reason in reasons.items():
            if now - self._reported.get(name, -REMIND_SECONDS) >= REMIND_SECONDS:
                self._reported[name] = now
                self._observer.on_message(f"{NodeError(name, reason)}; the federation waits for it")
        self._observer.on_waiting(sorted(reasons))

    def end(self) -> None:
        """The federation goes on."""
        if self._reported:
            self._observer.on_waiting([])


def is_unreachable(reply: Message) -> bool:
    """Whether a reply says no more than that none came."""
    return reply.has_error() and reply.error.code in UNREACHABLE
