"""The two endpoints of the SuperLink: which requests each one lets through, and from whom.

The public endpoint is open to networks that nobody controls. It reads no body from a sender that is not a registered
node, and serves only the paths that a node needs. The operator endpoint, on the loopback interface, serves everything
to anyone who knows the operator's token.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import HTTPException
from google.protobuf.message import DecodeError

from fednnunet import __version__
from fednnunet.config.node_file import INSTANCE_HEADER, NAME_HEADER, VERSION_PATH
from fednnunet.deployment.server.admission import Admission, Sender
from fednnunet.deployment.server.flower_internals import (
    API_ERROR_MAP,
    ApiErrorCode,
    FlowerError,
    PushMessagesRequest,
)
from fednnunet.deployment.server.operator_client import POLLS_PATH, TOKEN_HEADER
from fednnunet.deployment.server.signatures import NOT_REGISTERED, Signatures, only_header, public_key_of
from fednnunet.deployment.server.uploads import Uploads
from fednnunet.errors import one_line
from fednnunet.exchange.messages import MAX_BODY_BYTES

log = logging.getLogger(__name__)

POLL_PATH = "/v1/fleet/pull-messages"
REGISTER_PATH = "/v1/fleet/register-node"
ACTIVATE_PATH = "/v1/fleet/activate-node"
DEACTIVATE_PATH = "/v1/fleet/deactivate-node"
PUSH_PATH = "/v1/fleet/push-messages"
MAX_SMALL_BYTES = 2**16
LIMITS = {
    ACTIVATE_PATH: MAX_SMALL_BYTES,
    DEACTIVATE_PATH: MAX_SMALL_BYTES,
    "/v1/fleet/send-node-heartbeat": MAX_SMALL_BYTES,
    POLL_PATH: MAX_SMALL_BYTES,
    "/v1/fleet/pull-object": MAX_SMALL_BYTES,
    "/v1/fleet/confirm-message-received": MAX_SMALL_BYTES,
    PUSH_PATH: 4 * 2**20,
    "/v1/fleet/push-object": MAX_BODY_BYTES + 2**20,
}
"""Paths that nodes need, and the largest request to each, in bytes. A message is pushed as a list of its objects, then
the objects one by one: arrays are cut into 8 MiB, but a message's body is one object."""
REQUEST_SECONDS = 30.0
MIN_BYTES_PER_SECOND = 2**14
"""A request may take ``REQUEST_SECONDS``, plus the time that its bytes need at this speed."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def public_endpoint(
    app: App, polls: Counter[str], admission: Admission, uploads: Uploads, signatures: Signatures | None = None
) -> App:
    """Serve the part of the Fleet API that nodes need, by its exact paths; read no body from a sender that is no node.

    Args:
        app: Flower's SuperLink.
        polls: gets, by public key, how often a node has asked for a message; a node at work on a message does not ask.
        admission: decides which of the senders with a registered key are let in.
        uploads: is told when a node begins to send a reply, and when it asks for the next message.
        signatures: checks signatures of registered nodes; None where nodes have no keys.
    """
    limits = LIMITS if signatures is not None else LIMITS | {REGISTER_PATH: MAX_SMALL_BYTES}

    def refuse(scope: Scope, sender: Sender) -> tuple[int, str] | None:
        problem = None if signatures is None else signatures.problem(scope["headers"])
        if problem is not None:
            return 401, problem
        problem = admission.problem(sender)
        return None if problem is None else (409, problem)

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == VERSION_PATH and scope["method"] in ("GET", "HEAD"):
            await _answer(send, 200, _versions())
            return
        if path not in limits or scope["method"] != "POST":
            await _answer(send, 404, {"detail": "Not Found"})
            return
        sender = _sender(scope)
        refusal = await asyncio.to_thread(refuse, scope, sender)
        if refusal is not None:
            status, problem = refusal
            _log_refusal(scope, problem)
            if problem == NOT_REGISTERED and path == ACTIVATE_PATH:
                await _answer(send, *_unknown_node())
            else:
                await _answer(send, status, {"detail": problem})
            return
        try:
            body = await _read(scope, receive, limits[path])
            if path == PUSH_PATH:
                _check_sender(body)
        except _Rejected as rejected:
            _log_refusal(scope, rejected.detail)
            await _answer(send, rejected.status, {"detail": rejected.detail})
            return
        except ConnectionError:
            return
        if path == POLL_PATH:
            await asyncio.to_thread(uploads.end, sender.key)
            send = _when_accepted(send, lambda: polls.update([sender.key]))
        elif path == ACTIVATE_PATH:
            await asyncio.to_thread(admission.join, sender)
        elif path == DEACTIVATE_PATH:
            send = _when_accepted(send, lambda: admission.leave(sender))
        elif path == PUSH_PATH:
            send = _with_answer(send, lambda answer: uploads.begin(sender.key, answer))
        await app(scope, _replay(body, receive), send)

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await endpoint(scope, receive, send)
        except HTTPException as error:  # a full disk, at a question of ours to the database
            await _answer(send, error.status_code, {"detail": error.detail})

    return answering


def _sender(scope: Scope) -> Sender:
    name, instance = (only_header(scope["headers"], header) or "" for header in (NAME_HEADER, INSTANCE_HEADER))
    return Sender(public_key_of(scope["headers"]), one_line(name[:64]), instance[:64], _host(scope))


def _unknown_node() -> tuple[int, dict[str, Any]]:
    """Flower's answer to an unknown node that asks to be activated, in our words; Flower would log each of them."""
    error = FlowerError(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, NOT_REGISTERED)
    return API_ERROR_MAP[error.code].http_status_code, error.to_json(NOT_REGISTERED)


class _Rejected(Exception):
    """A request that is not passed on."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Body of a request.

    Raises:
        _Rejected: it is longer than ``limit`` bytes, or takes too long.
        ConnectionError: the sender has disconnected.
    """
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    announced = int(lengths[0]) if lengths else limit
    parts: list[bytes] = []
    received, more = 0, True
    try:
        async with asyncio.timeout(REQUEST_SECONDS + min(announced, limit) / MIN_BYTES_PER_SECOND):
            while more and max(received, announced if lengths else 0) <= limit:
                message = await receive()
                if message["type"] != "http.request":
                    raise ConnectionError
                parts.append(message.get("body", b""))
                received, more = received + len(parts[-1]), message.get("more_body", False)
    except TimeoutError:
        raise _Rejected(408, "the request took too long") from None
    if more or received > limit:
        raise _Rejected(413, f"at most {limit} bytes are accepted here")
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receiver that gives ``body`` first, then what ``receive`` gives."""
    bodies = [body]

    async def replay() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": bodies.pop(), "more_body": False} if bodies else await receive()

    return replay


def _check_sender(body: bytes) -> None:
    """Check that a node pushes only its own messages: Flower accepts any sender, even another node or the server.

    Raises:
        _Rejected: a message has another sender, or the request cannot be read.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        raise _Rejected(400, "the request cannot be read") from None
    if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
        raise _Rejected(403, "a node may only send its own messages")


def _log_refusal(scope: Scope, detail: str) -> None:
    log.warning("rejected %s from %s: %s", scope["path"], _host(scope), detail, extra={"cause": detail})


def _host(scope: Scope) -> str:
    return str((scope.get("client") or ("?",))[0])


def _when_accepted(send: Send, note: Callable[[], None]) -> Send:
    """A sender that calls ``note`` if Flower accepts the request: it knows the node."""

    async def noting_send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            note()
        await send(message)

    return noting_send


def _with_answer(send: Send, note: Callable[[bytes], None]) -> Send:
    """A sender that calls ``note`` with the body of the answer, before the last part of it leaves."""
    parts: list[bytes] = []

    async def noting_send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                note(b"".join(parts))
        await send(message)

    return noting_send


def operator_endpoint(app: App, polls: Counter[str], token: str) -> App:
    """Serve everything to anyone who knows the token, and the polls that the public endpoint has counted."""
    expected = f"Bearer {token}".encode()

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            given = [value for name, value in scope["headers"] if name == TOKEN_HEADER.encode()]
            if len(given) != 1 or not hmac.compare_digest(given[0], expected):
                await _answer(send, 401, {"detail": "the operator's token is missing or wrong"})
                return
            if scope["path"] == POLLS_PATH:
                await _answer(send, 200, polls)
                return
        await app(scope, receive, send)

    return endpoint


async def _answer(send: Send, status: int, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status >= 400:  # nothing more is read from a rejected sender
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _versions() -> dict[str, str]:
    return {
        "fednnunet": __version__,
        "flwr": version("flwr"),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
