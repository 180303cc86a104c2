"""The two doors of the SuperLink: what comes in by each, and from whom.

The outer one is where networks end that nobody watches. It reads nothing of who is no registered node, and leads to
the paths that a node needs alone. The inner one, at the loopback, leads to everything, for who knows the operator's
token.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from google.protobuf.message import DecodeError

from fednnunet import __version__
from fednnunet.config.node_file import VERSION_PATH
from fednnunet.deployment.server.operator_client import POLLS_PATH, TOKEN_HEADER
from fednnunet.deployment.server.signatures import NOT_REGISTERED, Signatures, public_key_of
from fednnunet.exchange.messages import MAX_BODY_BYTES

log = logging.getLogger(__name__)

POLL_PATH = "/v1/fleet/pull-messages"
REGISTER_PATH = "/v1/fleet/register-node"
ACTIVATE_PATH = "/v1/fleet/activate-node"
PUSH_PATH = "/v1/fleet/push-messages"
MAX_SMALL_BYTES = 2**16
LIMITS = {
    ACTIVATE_PATH: MAX_SMALL_BYTES,
    "/v1/fleet/deactivate-node": MAX_SMALL_BYTES,
    "/v1/fleet/send-node-heartbeat": MAX_SMALL_BYTES,
    POLL_PATH: MAX_SMALL_BYTES,
    "/v1/fleet/pull-object": MAX_SMALL_BYTES,
    "/v1/fleet/confirm-message-received": MAX_SMALL_BYTES,
    PUSH_PATH: 4 * 2**20,
    "/v1/fleet/push-object": MAX_BODY_BYTES + 2**20,
}
"""Paths that nodes need, and how many bytes a request to each may have. A message is pushed as a list of its objects,
and these one by one: Flower cuts arrays into 5 MiB, but a message's body is one object."""
REQUEST_SECONDS = 30.0
SLOWEST_BYTES_A_SECOND = 2**14
"""A request may take as long as its bytes take at this speed, and ``REQUEST_SECONDS``."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def fleet_only(app: App, polls: Counter[str], signatures: Signatures | None = None) -> App:
    """The outer door: what nodes need of the Fleet API, by its exact paths; nothing is read of who is no node.

    Args:
        app: Flower's.
        polls: counts, by public key, how often a node has asked for a message; one that works on a message does not.
        signatures: of registered nodes; None where nodes have no keys.
    """
    limits = LIMITS if signatures is not None else LIMITS | {REGISTER_PATH: MAX_SMALL_BYTES}

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == VERSION_PATH and scope["method"] in ("GET", "HEAD"):
            await _answer(send, 200, _versions())
            return
        if path not in limits or scope["method"] != "POST":
            await _answer(send, 404, {"detail": "Not Found"})
            return
        if signatures is not None:
            problem = await asyncio.to_thread(signatures.problem, scope["headers"])
            if problem is not None:
                _note_refused(scope, problem)
                if problem == NOT_REGISTERED and path == ACTIVATE_PATH:
                    await _answer(send, *_unknown_node())
                else:
                    await _answer(send, 401, {"detail": problem})
                return
        try:
            body = await _read(scope, receive, limits[path])
            if path == PUSH_PATH:
                _check_sender(body)
        except _Refused as refused:
            _note_refused(scope, refused.detail)
            await _answer(send, refused.status, {"detail": refused.detail})
            return
        except ConnectionError:
            return
        counting = _counting(send, public_key_of(scope["headers"]), polls) if path == POLL_PATH else send
        await app(scope, _again(body, receive), counting)

    return door


def _unknown_node() -> tuple[int, dict[str, Any]]:
    """What Flower answers to a node that it does not know, when it asks to be let in; it would log each."""
    error = FlowerError(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, NOT_REGISTERED)
    told = API_ERROR_MAP[error.code]
    return told.http_status_code, error.to_json(told.public_message)


class _Refused(Exception):
    """A request that is not passed on."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body of a request.

    Raises:
        _Refused: it is longer than ``limit`` bytes, or takes too long.
        ConnectionError: who sent it has gone.
    """
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    announced = int(lengths[0]) if lengths else limit
    parts: list[bytes] = []
    taken, more = 0, True
    try:
        async with asyncio.timeout(REQUEST_SECONDS + min(announced, limit) / SLOWEST_BYTES_A_SECOND):
            while more and max(taken, announced if lengths else 0) <= limit:
                message = await receive()
                if message["type"] != "http.request":
                    raise ConnectionError
                parts.append(message.get("body", b""))
                taken, more = taken + len(parts[-1]), message.get("more_body", False)
    except TimeoutError:
        raise _Refused(408, "the request took too long") from None
    if more or taken > limit:
        raise _Refused(413, f"at most {limit} bytes are taken here")
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives ``body``, and then what ``receive`` does."""
    bodies = [body]

    async def again() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": bodies.pop(), "more_body": False} if bodies else await receive()

    return again


def _check_sender(body: bytes) -> None:
    """Whether a node pushes messages of its own: Flower takes any sender, other nodes and the server among them.

    Raises:
        _Refused: it does not, or it is none that can be read.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        raise _Refused(400, "the request cannot be read") from None
    if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
        raise _Refused(403, "a node sends messages of its own only")


_refused = itertools.count(1)


def _note_refused(scope: Scope, detail: str) -> None:
    """Log the first few, and then fewer and fewer: who is refused must not fill the disk."""
    number = next(_refused)
    if number <= 100 or number % 1000 == 0:
        host = (scope.get("client") or ("?",))[0]
        log.warning("refused request %d, %s from %s: %s", number, scope["path"], host, detail)


def _counting(send: Send, node: str, polls: Counter[str]) -> Send:
    async def counting(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:  # Flower knows the node
            polls[node] += 1
        await send(message)

    return counting


def with_token(app: App, polls: Counter[str], token: str) -> App:
    """The inner door: everything, for who knows the token; and what the outer one has counted."""
    wanted = f"Bearer {token}".encode()

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            given = [value for name, value in scope["headers"] if name == TOKEN_HEADER.encode()]
            if len(given) != 1 or not hmac.compare_digest(given[0], wanted):
                await _answer(send, 401, {"detail": "the operator's token is missing or wrong"})
                return
            if scope["path"] == POLLS_PATH:
                await _answer(send, 200, polls)
                return
        await app(scope, receive, send)

    return door


async def _answer(send: Send, status: int, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status >= 400:  # and nothing more is read of what was refused
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _versions() -> dict[str, str]:
    return {
        "fednnunet": __version__,
        "flwr": version("flwr"),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
