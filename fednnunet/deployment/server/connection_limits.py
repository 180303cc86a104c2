"""Limits on connections to the public endpoint: how many there may be, and how long one may stay idle.

uvicorn limits neither: anyone who can reach the port could keep others from the server with connections that never
carry a complete request. Connections are counted before their TLS handshake, which costs memory and time. uvicorn's
parser in C has no limit on headers either; the one in Python, h11, accepts 64 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 900
"""Connections at the same time; a node has four."""
MAX_CONNECTIONS_PER_HOST = 100
HANDSHAKE_TIMEOUT_S = 5.0
"""A connection is closed if its TLS handshake takes longer."""
IDLE_TIMEOUT_S = 20.0
"""A connection is closed after one to two such periods without a new request."""
ACCEPT_PAUSE_S = 0.2
"""Pause after a connection could not be accepted."""


def host_of(address: str) -> str:
    """What connections are counted by: an IPv4 address, or the network of an IPv6 address, of which a host has many."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


class OpenConnections:
    """Counts connections, in all and by host."""

    def __init__(self) -> None:
        self._of_host: Counter[str] = Counter()

    def admit(self, host: str) -> bool:
        """Count one more connection, unless there are too many."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self._of_host.total() >= min(MAX_CONNECTIONS, files // 2) or self._of_host[host] >= MAX_CONNECTIONS_PER_HOST:
            return False
        self._of_host[host] += 1
        return True

    def release(self, host: str) -> None:
        """A connection has ended."""
        self._of_host[host] -= 1
        if self._of_host[host] <= 0:
            del self._of_host[host]


class LimitedServer(uvicorn.Server):
    """uvicorn's server on given sockets, which listen already; it counts connections before it shakes hands.

    Args:
        config: with :class:`LimitedConnection` for HTTP.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._open = OpenConnections()
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections from now on."""
        await self.lifespan.startup()
        self.servers = []
        for listener in sockets or []:
            self._start(self._accept(listener))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and end those that there are."""
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets)

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        try:
            await self._accept_all(listener)
        except Exception:
            log.exception("no more connections are accepted")
            self.should_exit = True  # and `server up` starts another

    async def _accept_all(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        while True:
            try:
                connection, address = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                log.warning("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            host = host_of(address[0])
            if self._open.admit(host):
                self._start(self._shake_hands(connection, host))
            else:
                log.warning("a connection from %s is refused: there are too many, from there or in all", host)
                _reset(connection)
            await asyncio.sleep(0)  # others, too, while connections come one after another

    async def _shake_hands(self, connection: socket.socket, host: str) -> None:
        def create() -> LimitedConnection:
            return LimitedConnection(
                lambda: self._open.release(host),
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )

        context = self.config.ssl
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                create, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if context else None
            )
        except BaseException as error:  # the connection was not made
            self._open.release(host)
            if not isinstance(error, OSError):  # no TLS, gone, or too slow
                raise
            why = str(error) or "it went away, or was silent"
            log.warning("no TLS with %s: %s", host, why, extra={"cause": f"no TLS: {type(error).__name__}"})


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


class LimitedConnection(H11Protocol):
    """HTTP/1.1 on a connection that is closed when no request was started, or is being answered, for a while.

    Args:
        on_end: called when the connection has ended.
        options: uvicorn's.
    """

    def __init__(self, on_end: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._on_end = on_end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there, with TLS."""
        super().connection_made(transport)
        self._last_cycle = self.cycle
        self._schedule_poll()

    def handle_events(self) -> None:
        """Read what has come; a request that breaks off in its middle ends the connection, in one line of the log."""
        try:
            super().handle_events()
        except h11.ProtocolError as error:
            host = self.client[0] if self.client else "?"
            log.warning("a request from %s cannot be read: %s", host, error, extra={"cause": "request not readable"})
            self.transport.abort()

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
        self._next_poll.cancel()
        self._on_end()
        super().connection_lost(exc)
