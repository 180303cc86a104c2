"""The process of Flower's SuperLink, with two endpoints.

Flower serves three APIs at one port: Fleet (for nodes), Control (which starts runs and registers nodes) and Runtime
(for ServerApps). Node keys guard only the first. Here the public endpoint serves nothing but Fleet, behind TLS; the
operator endpoint, on the loopback interface, serves everything and requires the operator's token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from fednnunet.deployment.memory import exempt_from_collection, keep_freed_buffers
from fednnunet.deployment.server.admission import Admission
from fednnunet.deployment.server.certificate_watcher import watch_certificate
from fednnunet.deployment.server.connection_limits import MAX_CONNECTIONS, LimitedConnection, LimitedServer
from fednnunet.deployment.server.database import open_database, watch_errors
from fednnunet.deployment.server.flower_superlink import NodeRegister, discard_upload
from fednnunet.deployment.server.gateway import operator_endpoint, public_endpoint
from fednnunet.deployment.server.log_limit import limit_log
from fednnunet.deployment.server.operator_client import DATABASE, TOKEN_FILE
from fednnunet.deployment.server.registration import Registration, watch_keys
from fednnunet.deployment.server.signatures import Signatures
from fednnunet.deployment.server.uploads import Uploads
from fednnunet.deployment.supervision import log_and_notify
from fednnunet.errors import ConfigError
from fednnunet.processes import end_with_parent

MAX_OPEN_FILES = 4 * MAX_CONNECTIONS
"""Each connection is an open file, even before its TLS handshake is complete."""


async def serve(
    state: Path,
    public: socket.socket,
    operator: socket.socket,
    token: str,
    keys: Path | None,
    notify: Callable[[str], None],
) -> None:
    """Serve both endpoints until a signal arrives, or the database turns out to be damaged.

    Args:
        state: folder with the database.
        public: bound socket of the public endpoint.
        operator: bound socket of the operator endpoint.
        token: the operator's token.
        keys: folder that ``fednnunet keys`` made; None for plain HTTP without node keys.
        notify: gets a line for the operator.

    Raises:
        ConfigError: the database cannot be used; the log says why.
    """
    loop, damaged = asyncio.get_running_loop(), asyncio.Event()
    watch_errors(state, lambda: loop.call_soon_threadsafe(damaged.set))
    app = open_database(state, auth=keys is not None)
    polls: Counter[str] = Counter()
    register = NodeRegister(app)
    signatures = None if keys is None else Signatures(register.node_id)
    common: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": 2,
        "ws": "none",
        "proxy_headers": False,  # no header overrides the address that a request comes from
        "server_header": False,
    }
    tls: dict[str, Any] = (
        {} if keys is None else {"ssl_certfile": keys / "server.crt", "ssl_keyfile": keys / "server.key"}
    )
    operator_server = uvicorn.Server(uvicorn.Config(operator_endpoint(app, polls, token), **common))
    admission = Admission(lambda _: "", notify, register.rename) if keys is None else Admission(register.name, notify)
    uploads = Uploads(partial(discard_upload, app))
    endpoint = public_endpoint(app, polls, admission, uploads, signatures)
    public_server = LimitedServer(uvicorn.Config(endpoint, lifespan="off", http=LimitedConnection, **common, **tls))
    exempt_from_collection()
    serving = {
        asyncio.ensure_future(server.serve([at]))
        for server, at in ((operator_server, operator), (public_server, public))
    }
    watches = []
    if keys is not None:
        public_server.config.load()
        assert public_server.config.ssl is not None
        watches = [
            asyncio.ensure_future(watch_certificate(public_server.config.ssl, keys, notify)),
            asyncio.ensure_future(watch_keys(Registration(register, notify), keys, notify)),
        ]
    # A signal ends the server that installed its handlers last; then the other one ends, too.
    is_damaged = asyncio.ensure_future(damaged.wait())
    await asyncio.wait({*serving, is_damaged}, return_when=asyncio.FIRST_COMPLETED)
    operator_server.should_exit = public_server.should_exit = True
    await asyncio.gather(*serving)
    for watch in (*watches, is_damaged):
        watch.cancel()
    if damaged.is_set():
        raise ConfigError(f"{state / DATABASE} is damaged")


def run_superlink(
    state: Path, public: socket.socket, operator: socket.socket, keys: Path | None, log_file: Path
) -> None:
    """Entry of the SuperLink's process.

    Args:
        state: folder with the database and the operator's token.
        public: listening socket of the public endpoint.
        operator: listening socket of the operator endpoint.
        keys: folder that ``fednnunet keys`` made; None for plain HTTP without node keys.
        log_file: takes what Flower and uvicorn log.

    Raises:
        ConfigError: the database cannot be used; the log says why.
    """
    keep_freed_buffers()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    notify = log_and_notify(log_file)
    for chatty in ("httpx", "flwr"):  # several lines per request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    limit_log()
    end_with_parent()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(MAX_OPEN_FILES, hard)), hard))
    token = (state / TOKEN_FILE).read_text(encoding="utf-8").strip()
    asyncio.run(serve(state, public, operator, token, keys, notify))
