"""The process of Flower's SuperLink, with two doors.

Flower 1.41 serves three APIs at one port: Fleet (for nodes), Control (who may start runs and register nodes) and
Runtime (for ServerApps). Node keys guard the first only. Here the outer door leads to Fleet alone, behind TLS; the
inner one, at the loopback, leads to everything and asks for the operator's token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from fednnunet.deployment.server.certificate_watcher import watch_certificate
from fednnunet.deployment.server.connection_limits import MAX_CONNECTIONS, WatchedConnection
from fednnunet.deployment.server.gateway import fleet_only, with_token
from fednnunet.deployment.server.operator_client import TOKEN_FILE
from fednnunet.deployment.server.signatures import Signatures
from fednnunet.deployment.supervision import log_to, terminal
from fednnunet.processes import end_with_parent

log = logging.getLogger(__name__)

DATABASE = "state.db"
FILES = 4 * MAX_CONNECTIONS
"""That may be open at once: each connection is one, those that have not finished TLS too."""
DISK_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""Errors of SQLite that say so."""


def flower_app(state: Path, auth: bool) -> FastAPI:
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


def name_full_disk(state: Path) -> None:
    """Let requests that the database has no room for be answered so; Flower says "internal server error" of each."""

    def look(context: ExceptionContext) -> None:
        code = getattr(context.original_exception, "sqlite_errorcode", None)
        if code in DISK_FULL:
            raise HTTPException(507, f"the disk of the server's state is full; make room at {state}")

    event.listen(Engine, "handle_error", look)


async def serve(
    state: Path,
    outer: socket.socket,
    inner: socket.socket,
    token: str,
    keys: Path | None,
    tell: Callable[[str], None],
) -> None:
    """Serve both doors until a signal ends it.

    Args:
        state: folder with the database.
        outer: bound socket of the Fleet API.
        inner: bound socket of everything.
        token: the operator's.
        keys: folder with ``server.crt`` and ``server.key``; None for plain HTTP without node keys.
        tell: gets a line for the operator.
    """
    name_full_disk(state)
    app = flower_app(state, auth=keys is not None)
    polls: Counter[str] = Counter()
    signatures = None if keys is None else Signatures(app.state.linkstate_factory.state().get_node_id_by_public_key)
    common: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": 2,
        "ws": "none",
        "proxy_headers": False,  # no header tells where a request comes from
        "server_header": False,
    }
    tls: dict[str, Any] = (
        {} if keys is None else {"ssl_certfile": keys / "server.crt", "ssl_keyfile": keys / "server.key"}
    )
    everything = uvicorn.Server(uvicorn.Config(with_token(app, polls, token), **common))
    door = fleet_only(app, polls, signatures)
    fleet = uvicorn.Server(uvicorn.Config(door, lifespan="off", http=WatchedConnection, **common, **tls))
    doors = {asyncio.ensure_future(server.serve([at])) for server, at in ((everything, inner), (fleet, outer))}
    watch = None
    if keys is not None:
        fleet.config.load()
        assert fleet.config.ssl is not None
        watch = asyncio.ensure_future(watch_certificate(fleet.config.ssl, keys, tell))
    # A signal ends the one that installed its handlers last; the other has nothing to go on for.
    await asyncio.wait(doors, return_when=asyncio.FIRST_COMPLETED)
    everything.should_exit = fleet.should_exit = True
    await asyncio.gather(*doors)
    if watch is not None:
        watch.cancel()


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
    say = terminal()
    log_to(log_file)

    def tell(text: str) -> None:
        log.warning("%s", text)
        say(text)

    for chatty in ("httpx", "flwr"):  # several lines a request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    end_with_parent()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(FILES, hard)), hard))
    token = (state / TOKEN_FILE).read_text(encoding="utf-8").strip()
    asyncio.run(serve(state, outer, inner, token, keys, tell))
