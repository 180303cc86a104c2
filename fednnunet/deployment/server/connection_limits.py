"""Limits on connections to the public endpoint: how many there may be, and how long one may stay idle.

uvicorn limits neither: anyone who can reach the port could keep others from the server with connections that never
carry a complete request. Its parser in C has no limit on headers either; the one in Python, h11, accepts 64 KiB.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 900
"""Connections at the same time; a node has four."""
MAX_CONNECTIONS_PER_HOST = 100
IDLE_TIMEOUT_S = 20.0
"""A connection is closed after one to two such periods without a new request."""


class LimitedConnection(H11Protocol):
    """HTTP/1.1 on a connection that is closed when no request was started, or is being answered, for a while."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or close it if there are too many."""
        super().connection_made(transport)
        host = self.client and self.client[0]
        of_host = sum(1 for other in self.connections if other.client and other.client[0] == host)
        if len(self.connections) > MAX_CONNECTIONS or of_host > MAX_CONNECTIONS_PER_HOST:
            transport.abort()
            return
        self._last_cycle = self.cycle
        self._schedule_poll()

    def _schedule_poll(self) -> None:
        self._next_poll = self.loop.call_later(IDLE_TIMEOUT_S, self._poll)

    def _poll(self) -> None:
        no_new_request = self.cycle is self._last_cycle
        if no_new_request and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
            return
        self._last_cycle = self.cycle
        self._schedule_poll()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching a connection that has ended."""
        if hasattr(self, "_next_poll"):
            self._next_poll.cancel()
        super().connection_lost(exc)
