"""Replies that nodes have begun to send: one that broke off is given up as soon as its node asks for work again.

Flower keeps a place for the rest of a reply for three minutes, in which the server app waits for it, and the node is
not asked again. But a node sends a reply in one piece of work: if it asks for a message before, the rest never comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from google.protobuf.message import DecodeError

from fednnunet.deployment.server.flower_internals import PushMessagesResponse


class Uploads:
    """The last reply of each node.

    Args:
        discard: makes Flower forget what it waits for, and what it has of it; does nothing where all of it has come.
    """

    def __init__(self, discard: Callable[[str], None]) -> None:
        self._discard = discard
        self._sessions: dict[str, str] = {}
        self._lock = threading.Lock()

    def begin(self, key: str, answer: bytes) -> None:
        """The node with the public key ``key`` sends a reply; ``answer`` is Flower's to its head."""
        try:
            session = PushMessagesResponse.FromString(answer).session_id
        except DecodeError:
            return
        with self._lock:
            self._sessions[key] = session

    def end(self, key: str) -> None:
        """The node asks for a message: it sends nothing of its last reply any more."""
        with self._lock:
            session = self._sessions.get(key, "")
        if session:
            self._discard(session)  # may fail on a full disk: the node asks again
            with self._lock:
                if self._sessions.get(key) == session:
                    del self._sessions[key]
