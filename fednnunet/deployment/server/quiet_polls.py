"""Nodes that ask for a message when nothing can have come for them, which are answered without Flower.

A node without work asks up to ten times a second. Flower checks its signature once more, and looks into the database
in several transactions; here it is enough that nothing was stored since the node last asked in vain.
"""

from __future__ import annotations

READS = frozenset(
    {
        "/fednnunet/polls",
        "/v1/runtime/get-nodes",
        "/v1/runtime/pull-messages",
        "/v1/runtime/pull-object",
        "/v1/runtime/send-task-heartbeat",
        "/v1/control/list-nodes",
    }
)
"""The operator's requests that leave no message for a node; any other may."""


class QuietPolls:
    """Counts what the operator stores, and at which count each node has last asked in vain."""

    def __init__(self) -> None:
        self._count = 0
        self._in_vain: dict[str, int] = {}

    @property
    def count(self) -> int:
        """How often something was stored; to be read before Flower is asked."""
        return self._count

    def store(self, path: str) -> None:
        """The operator's request to ``path`` was carried out: when it is over, whatever became of it."""
        if path not in READS:
            self._count += 1

    def note(self, key: str, count: int) -> None:
        """The node with the public key ``key`` was told that there is no message, having asked at ``count``."""
        self._in_vain[key] = count

    def is_quiet(self, key: str) -> bool:
        """Whether there is nothing for a node: nothing was stored since it asked in vain."""
        return self._in_vain.get(key) == self._count
