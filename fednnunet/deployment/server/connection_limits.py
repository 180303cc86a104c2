"""Connections at the outer door: so many, and none that only waits.

uvicorn has limits on neither: who can reach the port could keep the server from others by connections on which nothing
whole is ever asked. Its parser in C has no limit on headers either; the one in Python, h11, takes 64 KiB.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 900
"""At once; a node has four."""
MAX_OF_ONE_ADDRESS = 100
RETRY_TIMEOUT_S = 20.0


class WatchedConnection(H11Protocol):
    """HTTP/1.1 on a connection that is closed when no request was begun, or is worked on, for a while."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more; the one too many is closed."""
        super().connection_made(transport)
        host = self.client and self.client[0]
        of_host = sum(1 for other in self.connections if other.client and other.client[0] == host)
        if len(self.connections) > MAX_CONNECTIONS or of_host > MAX_OF_ONE_ADDRESS:
            transport.abort()
            return
        self._cycle_before = self.cycle
        self._watch()

    def _watch(self) -> None:
        self._next_look = self.loop.call_later(RETRY_TIMEOUT_S, self._look)

    def _look(self) -> None:
        nothing_new = self.cycle is self._cycle_before
        if nothing_new and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
            return
        self._cycle_before = self.cycle
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It needs no look any more."""
        if hasattr(self, "_next_look"):
            self._next_look.cancel()
        super().connection_lost(exc)
