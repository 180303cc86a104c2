"""Sender of a request to the public endpoint, identified by its headers alone, before anything of its body is read.

Flower's node signs the current time with its key for each request. Flower checks that after it has read the body,
and accepts the same headers again for five minutes; here they are checked first, and each is accepted once.
"""

from __future__ import annotations

import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fednnunet.deployment.server.flower_internals import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    bytes_to_public_key,
    now,
    verify_signature,
)

REMEMBERED_SECONDS = TIMESTAMP_TOLERANCE + 3 * SYSTEM_TIME_TOLERANCE
"""Longer than a signature is valid: its time may be ahead of ours."""

Headers = Iterable[tuple[bytes, bytes]]

NOT_REGISTERED = "the key is not registered"


def public_key_of(headers: Headers) -> str:
    """Public key that a request names, as written there; empty where it names none, or several."""
    return only_header(headers, FLEET_HTTP_PUBLIC_KEY_HEADER) or ""


class Signatures:
    """Checks signatures of registered nodes.

    Args:
        node_id: gives the id of the node that a public key is registered for; None for an unregistered key.
    """

    def __init__(self, node_id: Callable[[bytes], int | None]) -> None:
        self._node_id = node_id
        self._seen: dict[int, float] = {}
        self._lock = threading.Lock()

    def problem(self, headers: Headers) -> str | None:
        """What is wrong with the headers of a request; None if a registered node has just signed it."""
        timestamp, signature = only_header(headers, TIMESTAMP_HEADER), only_header(headers, FLEET_HTTP_SIGNATURE_HEADER)
        if timestamp is None or signature is None:
            return "the request is not signed"
        try:
            key = b64decode(public_key_of(headers), validate=True)
            if self._node_id(key) is None:
                return NOT_REGISTERED
            age = (now() - datetime.fromisoformat(timestamp)).total_seconds()
            signed = b64decode(signature, validate=True)
            if not verify_signature(bytes_to_public_key(key), timestamp.encode("ascii"), signed):
                return "the signature is not the key's"
            # Anyone who has a signature (r, s) can make the equally valid (r, -s): r alone identifies it.
            number, _ = decode_dss_signature(signed)
        except (ValueError, TypeError):
            return "the signature cannot be read"
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return "the signature is too old, or the clocks differ"
        return None if self._is_new(number) else "the request was sent before"

    def _is_new(self, number: int) -> bool:
        seen_at = time.monotonic()
        with self._lock:
            while (
                self._seen and (oldest := next(iter(self._seen))) and self._seen[oldest] < seen_at - REMEMBERED_SECONDS
            ):
                del self._seen[oldest]
            if number in self._seen:
                return False
            self._seen[number] = seen_at
            return True


def only_header(headers: Headers, name: str) -> str | None:
    """Value of a header; None where there is none, or several."""
    values = [value for key, value in headers if key == name.encode()]
    return values[0].decode("latin1") if len(values) == 1 else None
