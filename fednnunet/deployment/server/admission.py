"""Which of those who have a registered key are let in: a node under its own name, and one node for each key.

Of two nodes with one key, such as a copy of a work folder, each message would go to whichever asks first. Every node
says with its requests where it works (:mod:`fednnunet.deployment.node.instance`); who works elsewhere, and asks while
the first one is connected, is refused. Both sides are told by name.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fednnunet.exchange.messages import NODE_NAME

LEASE_SECONDS = 75.0
"""A node that has sent nothing for this long has left its place to another one: it has missed three heartbeats."""
MAX_TOLD = 1000


@dataclass(frozen=True)
class Sender:
    """Who has signed a request, by its headers.

    Attributes:
        key: public key.
        name: that the node gives itself; empty where it gives none.
        instance: where it works; empty where it does not say so, and is no node at work (``fednnunet node check``).
        address: that the request comes from.
    """

    key: str
    name: str
    instance: str
    address: str


class Admission:
    """Decides on requests that were signed with a registered key.

    Args:
        name_of: gives the name that a key is registered under; empty where it has none.
        notify: gets a line for the operator, once for each node that is refused.
        set_name: takes a key and the name that its node gives itself, where any key may join, under any name.
    """

    def __init__(
        self,
        name_of: Callable[[str], str],
        notify: Callable[[str], None],
        set_name: Callable[[str, str], None] | None = None,
    ) -> None:
        self._name_of = name_of
        self._set_name = set_name
        self._notify = notify
        self._at_work: dict[str, tuple[Sender, float]] = {}
        self._told: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def problem(self, sender: Sender) -> str | None:
        """Why a request is refused; None if it is not."""
        registered = self._name_of(sender.key)
        if sender.name and registered not in ("", sender.name):
            self._tell(
                (sender.key, sender.name),
                f"node {sender.name}, at {sender.address}, has the key of node {registered}, and is refused; were two "
                "hospitals' keys swapped?",
            )
            return f"this is the key of node {registered}, not of node {sender.name}"
        if not sender.instance:
            return None
        first = self._first(sender)
        if first is sender:
            return None
        node = f"node {registered or sender.name}"
        self._tell(
            (sender.key, sender.instance),
            f"{node}: a second machine or work folder, at {sender.address}, uses its key, and is refused while the "
            f"first one, at {first.address}, is connected; one of them must be stopped",
        )
        return (
            f"{node} is connected with this key from another machine or work folder, at {first.address}; stop one of "
            f"the two: this one joins within {LEASE_SECONDS:.0f} s then"
        )

    def _first(self, sender: Sender) -> Sender:
        """Who works with the sender's key: the sender itself, or the one that came before and is still there."""
        now = time.monotonic()
        with self._lock:
            first, seen = self._at_work.get(sender.key, (sender, now))
            if first.instance != sender.instance and now - seen <= LEASE_SECONDS:
                return first
            self._at_work[sender.key] = sender, now
            return sender

    def join(self, sender: Sender) -> None:
        """The node asks to join."""
        if self._set_name is not None and re.match(NODE_NAME, sender.name):
            self._set_name(sender.key, sender.name)

    def leave(self, sender: Sender) -> None:
        """The node has said that it goes: another one may come at once."""
        with self._lock:
            if sender.key in self._at_work and self._at_work[sender.key][0].instance == sender.instance:
                del self._at_work[sender.key]

    def _tell(self, refused: tuple[str, ...], line: str) -> None:
        with self._lock:
            if refused in self._told or len(self._told) >= MAX_TOLD:
                return
            self._told.add(refused)
        self._notify(line)
