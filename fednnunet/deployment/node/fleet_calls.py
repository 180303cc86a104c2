"""Calls of a node to the server's Fleet API: repeated until the server answers, never longer than an answer may be."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from fednnunet.config.node_file import INSTANCE_HEADER, NodeFile
from fednnunet.deployment.http_errors import error_text
from fednnunet.deployment.node.diagnosis import explain_unreachable
from fednnunet.deployment.node.flower_internals import (
    fleet_client,
    http_client,
    public_key_to_bytes,
)
from fednnunet.deployment.node.instance import instance_of
from fednnunet.exchange.messages import MAX_BODY_BYTES

log = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Pauses between attempts to reach a server that does not answer; the last one for all further attempts."""
ATTEMPTS_BEFORE_NOTICE = 2
"""Failed attempts that the operator is not notified of."""
MAX_RESPONSE_BYTES = MAX_BODY_BYTES + 2**20
"""The longest response is one object of a message: its body, or a chunk of its arrays."""

SLICE_BYTES = 2**18
"""Of a request, written at a time: each has 30 s, within which a slow line takes it."""

T = TypeVar("T")


class Refused(Exception):
    """The server does not accept a request; says what it answered."""


class FleetCalls:
    """The Fleet API of the node's server.

    Args:
        node_file: configuration of the node.
        key: private key of the node, which signs every request.
        notify: gets a line for the operator.

    Attributes:
        client: Flower's client, for single calls without a retry.
        public_key: the node's, as Flower's messages name it.
    """

    def __init__(self, node_file: NodeFile, key: ec.EllipticCurvePrivateKey, notify: Callable[[str], None]) -> None:
        self._node_file = node_file
        self._notify = notify
        self._is_down = False
        self._never = threading.Event()  # is never set: waits on it end by time alone
        self.public_key = public_key_to_bytes(key.public_key())
        self.client = fleet_client(node_file, key)
        node_file.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        http_client(self.client).headers[INSTANCE_HEADER] = instance_of(node_file.folder)
        # A server must not send this node elsewhere in the hospital's network, nor answer without an end.
        http_client(self.client).follow_redirects = False
        http_client(self.client).event_hooks = {"request": [_send_in_slices], "response": [_check_size]}

    def call(self, method: Callable[..., T], request: object) -> T:
        """Call ``method`` of :attr:`client` until the server answers; it, or the network, may be away for days.

        Raises:
            Refused: the server answered, but not with what was asked for.
        """
        attempts = 0
        while True:
            try:
                answer = method(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise Refused(error_text(error.response)) from None
                problem = error_text(error.response)
            except ValueError as error:
                raise Refused(f"an answer that cannot be read ({error})") from None
            except httpx.TransportError as error:
                problem = explain_unreachable(error, self._node_file)
            else:
                if self._is_down:
                    self._is_down = False
                    self._notify(f"{self._node_file.server} answers again")
                return answer
            attempts += 1
            if attempts > ATTEMPTS_BEFORE_NOTICE and not self._is_down:
                self._is_down = True
                self._notify(f"{self._node_file.server} does not answer ({problem}); the node keeps trying")
            log.info("attempt %d failed: %s", attempts, problem)
            self._never.wait(RETRY_SECONDS[min(attempts, len(RETRY_SECONDS)) - 1])


class _Slices(httpx.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), SLICE_BYTES):
            yield bytes(self._content[start : start + SLICE_BYTES])


def _send_in_slices(request: httpx.Request) -> None:
    """Let the time-out of a write be that of a slice, and not of the whole request, as it is with TLS."""
    if len(request.content) > SLICE_BYTES:
        request.stream = _Slices(request.content)


def _check_size(response: httpx.Response) -> None:
    """Check, before anything of a response is read, that it announces its length and is not too long.

    Raises:
        Refused: it is too long, or does not say how long it is.
    """
    length = response.headers.get("content-length", "")
    open_ended = "transfer-encoding" in response.headers or "content-encoding" in response.headers
    if open_ended or not length.isdigit() or int(length) > MAX_RESPONSE_BYTES:
        raise Refused(f"an answer of {length[:20] if not open_ended else 'unknown'} bytes")
