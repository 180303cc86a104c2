"""Who sends a request to the outer door, told by its headers alone: before anything of its body is read.

Flower's node signs the time, with its key, anew for each request. Flower checks that after it has read the body and
takes the same headers again for five minutes; here they are checked first, and each is taken once.
"""

from __future__ import annotations

import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

REMEMBERED_SECONDS = TIMESTAMP_TOLERANCE + 3 * SYSTEM_TIME_TOLERANCE
"""Longer than a signature is valid: its time may lie ahead of ours."""

Headers = Iterable[tuple[bytes, bytes]]


NOT_REGISTERED = "the key is not registered"


def public_key_of(headers: Headers) -> str:
    """The public key that a request names, as it is written there; empty where it names none, or several."""
    return _only(headers, FLEET_HTTP_PUBLIC_KEY_HEADER) or ""


class Signatures:
    """Checks signatures of registered nodes.

    Args:
        node_id: gives the id of the node that a public key is registered for; None where it is not.
    """

    def __init__(self, node_id: Callable[[bytes], int | None]) -> None:
        self._node_id = node_id
        self._seen: dict[int, float] = {}
        self._lock = threading.Lock()

    def problem(self, headers: Headers) -> str | None:
        """What is wrong with the headers of a request; None where a registered node has signed it just now."""
        timestamp, signature = _only(headers, TIMESTAMP_HEADER), _only(headers, FLEET_HTTP_SIGNATURE_HEADER)
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
            # Whoever has a signature (r, s) can make (r, -s), which is as good: r alone tells it from others.
            number, _ = decode_dss_signature(signed)
        except (ValueError, TypeError):
            return "the signature cannot be read"
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return "the signature is too old, or the clocks differ"
        return None if self._is_new(number) else "the request was sent before"

    def _is_new(self, number: int) -> bool:
        at = time.monotonic()
        with self._lock:
            while self._seen and (oldest := next(iter(self._seen))) and self._seen[oldest] < at - REMEMBERED_SECONDS:
                del self._seen[oldest]
            if number in self._seen:
                return False
            self._seen[number] = at
            return True


def _only(headers: Headers, name: str) -> str | None:
    values = [value for key, value in headers if key == name.encode()]
    return values[0].decode("latin1") if len(values) == 1 else None
