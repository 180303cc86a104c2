"""Flower's state as the calls of a round see it: what hundreds of them ask alike is answered from a second ago.

For each object that a node fetches or sends, Flower asks its database who the node is, ends tasks that are overdue,
asks whether the run goes on, and counts the object's bytes: five transactions, of which three take the lock for
writing, and cost more than the object.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

from fednnunet.deployment.server.flower_internals import Status

FRESH_SECONDS = 1.0
"""How long it is taken for granted that a node is registered, a run goes on or a token is valid."""


class RoundState:
    """Flower's state, for the calls of :class:`~fednnunet.deployment.server.flower_superlink.DirectCalls`.

    Only what lets a call through is remembered: a node that is registered, a run that is running, a token that is
    valid. Everything else goes to Flower's state each time.

    Args:
        state: gives Flower's state.
    """

    def __init__(self, state: Callable[[], Any]) -> None:
        self._state = state
        self._answers: dict[Hashable, tuple[float, Any]] = {}
        self._sent: Counter[int] = Counter()
        self._received: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state(), name)

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        """Id of a registered node; None where the key is not registered."""
        return self._remembered(("node", public_key), lambda: self._state().get_node_id_by_public_key(public_key))

    def get_task_by_token(self, token: str) -> Any:
        """The task that a token is valid for; None where it is not."""
        return self._remembered(("task", token), lambda: self._state().get_task_by_token(token))

    def get_run_status(self, run_ids: set[int]) -> dict[int, Any]:
        """Status of each run."""
        found: dict[int, Any] = {}

        def running() -> dict[int, Any] | None:
            found.update(self._state().get_run_status(run_ids))
            is_running = bool(found) and all(status.status == Status.RUNNING for status in found.values())
            return found if is_running else None

        return self._remembered(("runs", frozenset(run_ids)), running) or found

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        """Count bytes of a run, which :meth:`flush_traffic` stores."""
        with self._lock:
            self._sent[run_id] += bytes_sent
            self._received[run_id] += bytes_recv

    def flush_traffic(self) -> None:
        """Store the bytes that were counted since the last time; Flower only shows them."""
        with self._lock:
            sent, received = self._sent, self._received
            self._sent, self._received = Counter(), Counter()
        for run_id in sent.keys() | received.keys():
            with contextlib.suppress(ValueError):  # the run is not known any more
                self._state().store_traffic(run_id, bytes_sent=sent[run_id], bytes_recv=received[run_id])

    def _remembered(self, question: Hashable, ask: Callable[[], Any]) -> Any:
        now = time.monotonic()
        with self._lock:
            asked, answer = self._answers.get(question, (0.0, None))
        if answer is not None and now - asked <= FRESH_SECONDS:
            return answer
        answer = ask()
        with self._lock:
            if answer is None:
                self._answers.pop(question, None)
            else:
                self._answers = {q: held for q, held in self._answers.items() if now - held[0] <= FRESH_SECONDS}
                self._answers[question] = now, answer
        return answer
