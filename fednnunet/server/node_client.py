"""Requests to nodes that may be away, late or started again, and their replies, over any Flower grid."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from flwr.app import Message
from flwr.common.constant import ErrorCode

from fednnunet.errors import NodeError
from fednnunet.exchange.error_codes import ERROR_CODES
from fednnunet.server.local_grid import LocalGrid, NodeGrid, wait_a_moment

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
PAUSES = (0.0, 5.0, 15.0, 60.0)
"""Seconds before a node that is there, and has failed so often, is asked again; the last for all further times."""
REMIND_SECONDS = 600.0
"""Between two notes of whom the federation waits for."""


class Watcher(Protocol):
    """Who is told whom the federation waits for: the journal."""

    def message(self, text: str) -> None:
        """Something that the operator should read."""

    def waiting(self, nodes: Collection[str]) -> None:
        """The federation waits for these nodes to come back; none when it goes on."""


class Unwatched:
    """Nobody is told anything."""

    def message(self, text: str) -> None:
        log.warning("%s", text)

    def waiting(self, nodes: Collection[str]) -> None: ...


class NodeClient:
    """Sends requests and hands out replies.

    Where nodes are started again when they die (``patient``), one that cannot be reached is no failure: a round that
    has enough nodes goes on without it, otherwise the federation waits, and asks it again when it is back.

    Args:
        grid: embedded, or Flower's of a SuperLink.
        watcher: is told whom the federation waits for.
        patient: whether nodes come back.
    """

    def __init__(self, grid: NodeGrid, watcher: Watcher | None = None, patient: bool = False) -> None:
        self.grid = grid
        self.patient = patient
        self.names = grid.names()
        self._watcher = watcher or Unwatched()
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

    def wait_for(self, nodes: Collection[str]) -> None:
        """Tell that the federation waits for these nodes; none when it goes on."""
        self._watcher.waiting(nodes)

    def present(self, nodes: Collection[int], enough: int | None) -> list[int]:
        """Of ``nodes`` those that can be asked; waits until they are ``enough``.

        Args:
            nodes: wanted.
            enough: so many will do; None wants all.

        Returns:
            Nodes that are connected, and not at work on what is not waited for; all where nodes do not come back.
        """
        if not self.patient:
            return list(nodes)
        absences = AbsenceReporter(self._watcher)
        while True:
            self._drop_late()
            online, late = set(self.grid.get_node_ids()), set(self._late.values())
            there = [node for node in nodes if node in online - late]
            if len(there) >= (len(nodes) if enough is None else min(enough, len(nodes))):
                absences.over()
                self._tell_absent(nodes, there)
                return there
            out = [node for node in nodes if node not in there]
            absences.note({self.name(node): "still at work" if node in online else "not connected" for node in out})
            wait_a_moment(self.grid, list(self._late), REMIND_SECONDS)

    def _tell_absent(self, nodes: Collection[int], there: Collection[int]) -> None:
        for node in nodes:
            if node in there and node in self._absent:
                self._absent.remove(node)
                self._watcher.message(f"node {self.name(node)} is in again")
            elif node not in there and node not in self._absent:
                self._absent.add(node)
                self._watcher.message(f"node {self.name(node)} is away; the federation goes on without it")

    def stream(
        self, messages: Sequence[Message], timeout: float | None, enough: int | None = None
    ) -> Iterator[Message]:
        """Send ``messages`` and yield each reply when it is there.

        Args:
            messages: one per node.
            timeout: seconds; replies that come later are absent and thrown away. None waits for ever. A patient
                federation that has not enough replies by then goes on waiting.
            enough: so many replies will do, and nodes that cannot be reached are left out; None wants all.
        """
        sent = {message.metadata.dst_node_id: message for message in messages}
        waiting = dict(zip(self.grid.push_messages(messages), sent, strict=True))
        away: dict[int, tuple[str, float]] = {}
        failures: Counter[int] = Counter()
        deadline = None if timeout is None else time.monotonic() + timeout
        absences = AbsenceReporter(self._watcher)
        replies = 0
        while waiting or away:
            for reply in self._pull(waiting):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    log.warning("node %d replied twice; its second reply is not read", reply.metadata.src_node_id)
                    continue
                needed = enough is None or replies + len(waiting) < enough
                if self.patient and needed and is_unreachable(reply):
                    pause = PAUSES[min(failures[node], len(PAUSES) - 1)]
                    away[node] = reply.error.reason or "its reply is lost", time.monotonic() + pause
                    failures[node] += 1
                    continue
                replies += reply.has_content()
                yield reply
            if away:
                now = time.monotonic()
                back = [node for node in self.grid.get_node_ids() if node in away and away[node][1] <= now]
                again = [_again(sent[node]) for node in back]
                waiting.update(zip(self.grid.push_messages(again), back, strict=True) if again else ())
                absences.note({self.name(node): reason for node, (reason, _) in away.items()})
                for node in back:
                    del away[node]
            over = deadline is not None and time.monotonic() >= deadline
            if over and (not self.patient or (enough is not None and replies >= enough)):
                self._late.update(waiting)
                self.grid.abandon(waiting)
                break
            if over and self.patient:
                absences.note({self.name(node): "has not replied in time" for node in waiting.values()})
            if waiting or away:
                left = REMIND_SECONDS if deadline is None or over else deadline - time.monotonic()
                wait_a_moment(self.grid, waiting, left)
        absences.over()

    def _pull(self, waiting: Mapping[str, int]) -> Iterable[Message]:
        if isinstance(self.grid, LocalGrid) or not waiting:
            return self.grid.pull_messages(list(waiting))
        # From a SuperLink in the order of the requests: what is early waits there, and not in memory here. Of nodes
        # that have gone no reply is to be waited for.
        online, first = set(self.grid.get_node_ids()), next(iter(waiting))
        return self.grid.pull_messages([id_ for id_, node in waiting.items() if id_ == first or node not in online])

    def _drop_late(self) -> None:
        for reply in self.grid.pull_messages(list(self._late)) if self._late else ():
            node = self._late.pop(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            log.warning("the reply of node %s comes too late; it is not used", self.name(node))


class AbsenceReporter:
    """Tells of nodes that are waited for, once each, and again after a while."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._told: dict[str, float] = {}

    def note(self, reasons: Mapping[str, str]) -> None:
        """The federation waits for these nodes."""
        now = time.monotonic()
        for name, reason in reasons.items():
            if now - self._told.get(name, -REMIND_SECONDS) >= REMIND_SECONDS:
                self._told[name] = now
                self._watcher.message(f"{NodeError(name, reason)}; the federation waits for it")
        self._watcher.waiting(sorted(reasons))

    def over(self) -> None:
        """The federation goes on."""
        if self._told:
            self._watcher.waiting([])


def is_unreachable(reply: Message) -> bool:
    """Whether a reply says no more than that none came."""
    return reply.has_error() and reply.error.code in UNREACHABLE


def _again(message: Message) -> Message:
    metadata = message.metadata
    return Message(message.content, metadata.dst_node_id, metadata.message_type)
