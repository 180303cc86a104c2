"""The process of Flower's SuperLink, with two doors.

Flower 1.41 serves three APIs at one port: Fleet (for nodes), Control (who may start runs and register nodes) and
Runtime (for ServerApps). Node keys guard the first only. Here the outer door leads to Fleet alone, behind TLS; the
inner one, at the loopback, leads to everything and asks for the operator's token.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app

from fednnunet import __version__
from fednnunet.deployment.operator import POLLS_PATH, TOKEN_FILE, TOKEN_HEADER
from fednnunet.deployment.processes import end_with_parent, log_to
from fednnunet.exchange.messages import MAX_BODY_BYTES

log = logging.getLogger(__name__)

FLEET = "/v1/fleet/"
POLL_PATH = "/v1/fleet/pull-messages"
VERSION_PATH = "/v1/fleet/fednnunet"
"""Tells versions and time, before a node joins."""
MAX_REQUEST_BYTES = MAX_BODY_BYTES + 2**20
"""Flower sends objects of at most 5 MiB, but a message's body is one."""
DATABASE = "state.db"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def fleet_only(app: App, polls: Counter[str]) -> App:
    """The outer door: the Fleet API, no other path, no request larger than a message can be.

    Args:
        app: Flower's.
        polls: counts, by public key, how often a node has asked for a message; one that works on a message does not.
    """

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == VERSION_PATH:
            await _answer(send, 200, _versions())
        elif not scope["path"].startswith(FLEET):
            await _answer(send, 404, {"detail": "Not Found"})
        elif _announced(scope) > MAX_REQUEST_BYTES:
            await _answer(send, 413, {"detail": "Too large"})
        else:
            counting = _counting(send, _public_key(scope), polls) if scope["path"] == POLL_PATH else send
            await app(scope, _limited(receive), counting)

    return door


def _counting(send: Send, node: str, polls: Counter[str]) -> Send:
    async def counting(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:  # Flower knows the node
            polls[node] += 1
        await send(message)

    return counting


def _public_key(scope: Scope) -> str:
    wanted = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
    return next((value.decode("latin1") for name, value in scope["headers"] if name == wanted), "")


def with_token(app: App, polls: Counter[str], token: str) -> App:
    """The inner door: everything, for who knows the token; and what the outer one has counted."""
    wanted = f"Bearer {token}".encode()

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name == TOKEN_HEADER.encode()]
            if len(given) != 1 or not hmac.compare_digest(given[0], wanted):
                await _answer(send, 401, {"detail": "the operator's token is missing or wrong"})
                return
            if scope["path"] == POLLS_PATH:
                await _answer(send, 200, polls)
                return
        await app(scope, receive, send)

    return door


def _announced(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def _limited(receive: Receive) -> Receive:
    """Of a request that does not say how large it is, no more than one may be."""
    taken = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > MAX_REQUEST_BYTES else message

    return limited


async def _answer(send: Send, status: int, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _versions() -> dict[str, str]:
    return {
        "fednnunet": __version__,
        "flwr": version("flwr"),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def flower_app(state: Path, auth: bool) -> App:
    """Flower's SuperLink: runs are those of ServerApps that come for them, nothing is started here."""
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=None,
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=auth,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(state / DATABASE),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


async def serve(state: Path, outer: socket.socket, inner: socket.socket, token: str, keys: Path | None) -> None:
    """Serve both doors until a signal ends it.

    Args:
        state: folder with the database.
        outer: bound socket of the Fleet API.
        inner: bound socket of everything.
        token: the operator's.
        keys: folder with ``server.crt`` and ``server.key``; None for plain HTTP without node keys.
    """
    app = flower_app(state, auth=keys is not None)
    polls: Counter[str] = Counter()
    common: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 2}
    tls: dict[str, Any] = (
        {} if keys is None else {"ssl_certfile": keys / "server.crt", "ssl_keyfile": keys / "server.key"}
    )
    everything = uvicorn.Server(uvicorn.Config(with_token(app, polls, token), **common))
    fleet = uvicorn.Server(uvicorn.Config(fleet_only(app, polls), lifespan="off", **common, **tls))
    doors = {asyncio.ensure_future(server.serve([at])) for server, at in ((everything, inner), (fleet, outer))}
    # A signal ends the one that installed its handlers last; the other has nothing to go on for.
    await asyncio.wait(doors, return_when=asyncio.FIRST_COMPLETED)
    everything.should_exit = fleet.should_exit = True
    await asyncio.gather(*doors)


def run_superlink(state: Path, outer: socket.socket, inner: socket.socket, keys: Path | None, log_file: Path) -> None:
    """Process entry.

    Args:
        state: folder with the database and the operator's token.
        outer: listening socket of the Fleet API.
        inner: listening socket of everything.
        keys: folder with ``server.crt`` and ``server.key``; None for plain HTTP without node keys.
        log_file: takes what Flower and uvicorn say.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    log_to(log_file)
    for chatty in ("httpx", "flwr"):  # several lines a request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    end_with_parent()
    token = (state / TOKEN_FILE).read_text(encoding="utf-8").strip()
    asyncio.run(serve(state, outer, inner, token, keys))
