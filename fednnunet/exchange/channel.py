"""The channel between a ClientApp (relay, short-lived) and its node worker (long-lived), on one machine.

A connection carries one request and its reply over an AF_UNIX socket, authenticated with a shared key (HMAC,
``multiprocessing.connection``); arrays go through shared memory whose descriptor is passed along. Only bytes are
sent and received, never objects.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import socket
import struct
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fednnunet import __version__
from fednnunet.errors import FednnUNetError, ProtocolError, one_line
from fednnunet.exchange.arrays import Layout, SharedArrays
from fednnunet.exchange.messages import MAX_BODY_BYTES, Failure, Kind, parse_body
from fednnunet.exchange.shared_memory import Borrowed

log = logging.getLogger(__name__)

MAX_ADDRESS_BYTES = 107
HANDSHAKE_SECONDS = 10.0
BACKLOG = 16
MAX_HEAD_BYTES = 4096
MEMORIES_OF_SERVER = 2
"""Memories of averages that a worker keeps mapped: those of the last round, and those of the one before."""
MEMORIES_OF_WORKERS = 8
"""Nodes whose last memory a relay keeps mapped.

To map 134 MB anew takes 20 ms; but what is mapped stays in memory, also when its node, which shares a worker, has left.
"""


_of_workers = Borrowed(MEMORIES_OF_WORKERS)


class WorkerFailure(FednnUNetError):
    """The worker answered with a failure.

    Attributes:
        failure: the worker's message.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class WorkerUnreachable(FednnUNetError):
    """The worker cannot be reached, or ended before its reply.

    Attributes:
        started: the worker had the request.
    """

    def __init__(self, reason: str, started: bool) -> None:
        super().__init__(reason)
        self.started = started


class Reply(NamedTuple):
    """A reply that a worker is about to send.

    Attributes:
        ok: whether the request was carried out; otherwise ``body`` is a :class:`~fednnunet.exchange.messages.Failure`.
        body: JSON.
        arrays: arrays beside the body, where there are any.
    """

    ok: bool
    body: str
    arrays: SharedArrays | None


class Request:
    """One request at the worker, which gets one reply."""

    def __init__(
        self,
        connection: Connection,
        kind: Kind,
        body: bytes,
        shared: SharedArrays | None,
        before_reply: BeforeReply | None = None,
    ) -> None:
        self._connection = connection
        self._shared = shared
        self._before_reply = before_reply
        self.kind = kind
        self.body = body
        self.arrays: dict[str, np.ndarray] = {} if shared is None else shared.views()

    def reply(self, body: str, arrays: SharedArrays | None = None) -> bool:
        """Send the reply; False when the relay is gone (it can send the request again)."""
        return self._answer(Reply(True, body, arrays))

    def fail(self, failure: Failure) -> bool:
        """Send a failure; False when the relay is gone."""
        return self._answer(Reply(False, failure.model_dump_json(), None))

    def _answer(self, reply: Reply) -> bool:
        """Send a reply: the only way in which anything leaves the worker."""
        try:
            withheld = self._before_reply(self, reply) if self._before_reply is not None else None
            if withheld is not None:
                reply = Reply(False, withheld.model_dump_json(), None)
            _send(self._connection, {"ok": reply.ok, "version": __version__}, reply.body, reply.arrays)
        except OSError as error:
            log.warning("the relay went away before the reply to %s: %s", self.kind, error)
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Drop connection and arrays."""
        self.arrays, self._shared = {}, None
        self._connection.close()


BeforeReply: TypeAlias = Callable[[Request, Reply], Failure | None]
"""Sees each reply before it is sent; a failure that it returns is sent instead."""


class WorkerChannel:
    """The worker's end: listens, and returns one request at a time.

    Args:
        address: path of the socket; its folder should be the owner's alone.
        key: shared with the relays.
        before_reply: sees every reply, and can withhold it.
    """

    def __init__(self, address: str | Path, key: bytes, before_reply: BeforeReply | None = None) -> None:
        if len(os.fsencode(str(address))) > MAX_ADDRESS_BYTES:
            raise ProtocolError(f"the socket's path is longer than {MAX_ADDRESS_BYTES} bytes: {address}")
        # The key is used after accept, under a timeout of its own: a silent peer must not block the worker.
        self._listener = Listener(str(address), family="AF_UNIX", backlog=BACKLOG)
        self._key = key
        self._before_reply = before_reply
        self._borrowed = Borrowed(MEMORIES_OF_SERVER)

    def receive(self, timeout: float | None = None) -> Request | None:
        """The next valid request; None when ``timeout`` seconds passed or a peer was refused.

        Raises:
            ConnectionError: the channel was closed.
        """
        listening = self._listener._listener  # type: ignore[attr-defined]
        if listening is None:
            raise ConnectionError("the channel is closed")
        if not wait([listening._socket], timeout):
            return None
        connection: Connection | None = None
        try:
            connection = self._listener.accept()
            _limit_time(connection, HANDSHAKE_SECONDS)
            multiprocessing.connection.deliver_challenge(connection, self._key)
            multiprocessing.connection.answer_challenge(connection, self._key)
            head, body, shared = _receive(connection, "the relay", self._borrowed)
            _limit_time(connection, 0)
            try:
                kind = Kind(str(head.get("kind")))
            except ValueError:
                raise ProtocolError(f"the relay sent a message of unknown kind {head.get('kind')!r}") from None
            return Request(connection, kind, body, shared, self._before_reply)
        except (OSError, EOFError, multiprocessing.AuthenticationError, ProtocolError) as error:
            log.warning("refused a connection: %s: %s", type(error).__name__, error)
            if connection is not None:
                connection.close()
            return None

    def fileno(self) -> int:
        """Descriptor that is readable when a peer connects: for :func:`multiprocessing.connection.wait`."""
        return self._listener._listener._socket.fileno()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._listener.close()


def call_worker(
    address: str | Path,
    key: bytes,
    kind: Kind,
    body: str,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> tuple[bytes, SharedArrays | None]:
    """Send one request to the worker at ``address`` and wait for its reply.

    Returns:
        The reply's body, and its arrays; the worker does not reuse their memory before nothing is left of them.

    Raises:
        WorkerFailure: the worker answered with a failure, or runs another version of this package.
        WorkerUnreachable: no worker there, wrong key, or it ended before its reply.
        ProtocolError: the reply is malformed.
    """
    started = False
    try:
        with Client(str(address), family="AF_UNIX", authkey=key) as connection:
            _send(connection, {"kind": kind.value}, body, _shared(arrays) if arrays else None)
            started = True
            head, reply, received = _receive(connection, "the node worker", _of_workers, str(address))
    except (OSError, EOFError, multiprocessing.AuthenticationError) as error:
        what = "ended" if started else "cannot be reached"
        raise WorkerUnreachable(
            f"the node worker {what} ({type(error).__name__}); see the node's log", started
        ) from error
    if head.get("version") != __version__:
        raise WorkerFailure(
            Failure(
                reason=f"the node's worker runs fednnunet {one_line(str(head.get('version')))}, its connection "
                f"{__version__}; end the node, and start it again",
                error="config",
            )
        )
    if head.get("ok") is not True:
        raise WorkerFailure(parse_body(Failure, reply, "the node worker"))
    return reply, received


# wire -------------------------------------------------------------------------------------------------


def _shared(arrays: Mapping[str, np.ndarray]) -> SharedArrays:
    """The arrays in shared memory: where they are, or a copy."""
    shared = SharedArrays.around(arrays)
    if shared is None:
        shared = SharedArrays.allocate({name: (array.shape, array.dtype) for name, array in arrays.items()})
        for name, view in shared.views().items():
            np.copyto(view, arrays[name])
    return shared


def _send(connection: Connection, head: dict[str, Any], body: str, arrays: SharedArrays | None) -> None:
    layout = "" if arrays is None else arrays.layout.model_dump_json()
    connection.send_bytes(json.dumps(head | {"arrays": bool(layout)}).encode())
    connection.send_bytes(body.encode() or b" ")
    if arrays is not None:
        connection.send_bytes(layout.encode())
        with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            lent = arrays.memory.lend()
            try:
                socket.send_fds(raw, [b"\x01"], [lent])
            finally:
                os.close(lent)


def _receive(
    connection: Connection, where: str, borrowed: Borrowed, lender: str | None = None
) -> tuple[dict[str, Any], bytes, SharedArrays | None]:
    try:
        head = json.loads(_receive_part(connection, MAX_HEAD_BYTES, where))
    except (ValueError, RecursionError):
        raise ProtocolError(f"{where} sent a head that is not JSON") from None
    if not isinstance(head, dict):
        raise ProtocolError(f"{where} sent a head that is not an object")
    body = _receive_part(connection, MAX_BODY_BYTES, where)
    if not head.get("arrays"):
        return head, body, None
    layout = Layout.parse(_receive_part(connection, MAX_BODY_BYTES, where), where)
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        _, descriptors, _, _ = socket.recv_fds(raw, 1, 1)
    if len(descriptors) != 1:
        raise ProtocolError(f"{where} announced arrays and sent none")
    return head, body, SharedArrays.attach(descriptors[0], layout, where, borrowed, lender)


def _receive_part(connection: Connection, limit: int, where: str) -> bytes:
    """The next part of a message; none of it is read where it is too long."""
    try:
        return connection.recv_bytes(limit)
    except OSError:
        if connection.closed or connection.readable:
            raise
        # multiprocessing reads no more from a connection that announced a length beyond the limit.
        raise ProtocolError(f"{where} sent more than the {limit} bytes that are taken at once") from None


def _limit_time(connection: Connection, seconds: float) -> None:
    """Set the time-out of reads and writes on a connection, in seconds; 0 for none."""
    whole = int(seconds)
    value = struct.pack("ll", whole, int((seconds - whole) * 1e6))
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
