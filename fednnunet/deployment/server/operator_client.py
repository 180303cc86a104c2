"""The operator's side of the server: asks for its nodes, starts a run and becomes its ServerApp."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fednnunet import __version__
from fednnunet.deployment.proxies import check_proxies, exempt_from_proxies
from fednnunet.deployment.server.flower_internals import (
    AcquireTaskRequest,
    ControlHttpClient,
    Fab,
    ListNodesRequest,
    ListRunsRequest,
    NodeInfo,
    NodeStatus,
    ProtobufCall,
    ProtobufRequestContext,
    RuntimeHttpClient,
    RuntimeVersionHttpInterceptor,
    StartRunRequest,
    Status,
    StopRunRequest,
    TaskType,
    build_fab_from_files,
)
from fednnunet.errors import ConfigError

SERVER_FILE = "server.json"
DATABASE = "state.db"
TOKEN_FILE = "operator.token"  # noqa: S105  a file's name
POLLS_PATH = "/fednnunet/polls"
TOKEN_HEADER = "fednnunet-operator"  # noqa: S105
ACQUIRE_SECONDS = 30.0
GONE_AWAY = (httpx.TransportError, httpx.HTTPStatusError)
"""Errors of calls to a server that has gone, or does not know the caller any more."""


@dataclass(frozen=True)
class ServerFacts:
    """``server.json``: where the running server listens, and how.

    Attributes:
        address: ``host:port`` for nodes.
        control: ``host:port`` for the operator, on this machine.
        tls: whether nodes need TLS and a key.
        keys: folder with the keys and certificates.
        pid: id of the process that keeps the server alive.
        version: version of fednnunet.
        started: time of its start, ISO 8601.
    """

    address: str
    control: str
    tls: bool
    keys: str | None
    pid: int
    version: str
    started: str


def read_server(state: Path) -> ServerFacts:
    """Read where the server with this state folder listens, and how.

    Raises:
        ConfigError: no server was started with this folder, or its file cannot be read.
    """
    try:
        return ServerFacts(**json.loads((state / SERVER_FILE).read_bytes()))
    except FileNotFoundError:
        raise ConfigError(
            f"{state} is not a server's state folder; start the server (fednnunet server up), or name its folder "
            "(--state of fednnunet server, federation.server of a run)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{state / SERVER_FILE} cannot be read ({error.strerror}); use the server's user") from None
    except (ValueError, TypeError):
        raise ConfigError(
            f"{state / SERVER_FILE} is damaged, or of another version; start the server with this folder again"
        ) from None


class OperatorToken:
    """Adds the operator's token to every request."""

    def __init__(self, token: str) -> None:
        self._value = f"Bearer {token}"

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Flower's hook around a request."""
        context.request.headers[TOKEN_HEADER] = self._value
        return call_next(context)


class Operator:
    """Client of the server's operator endpoint.

    Args:
        state: folder of the server's state.

    Raises:
        ConfigError: there is no server, this user cannot read its token, or a proxy is named that cannot be one.
    """

    def __init__(self, state: Path) -> None:
        self.server = read_server(state)
        check_proxies()  # HTTP clients would fail at one, although none is on the way to this machine
        exempt_from_proxies("127.0.0.1")  # a proxy cannot reach this machine's loopback, and must not see the token
        try:
            self._token = (state / TOKEN_FILE).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"{state / TOKEN_FILE} cannot be read ({error.strerror}); use the server's user"
            ) from None

        # Not from the environment: no proxy, and no SSL_CERT_FILE. It trusts nobody, as plain HTTP needs no
        # certificates, and reading them takes longer than a request.
        self._http = httpx.Client(timeout=30, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def interceptors(self, component: str) -> list[Any]:
        """Interceptors that every client of the operator endpoint needs."""
        return [OperatorToken(self._token), RuntimeVersionHttpInterceptor(component_name=component)]

    @contextlib.contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        with ControlHttpClient.from_server_address(self.server.control, True, None, self.interceptors("flwr CLI")) as c:
            yield c

    def nodes(self) -> list[NodeInfo]:
        """All registered nodes: name, online or not, last heartbeat."""
        with self._control() as control:
            known = control.ListNodes(ListNodesRequest()).nodes_info
        return [node for node in known if node.status != NodeStatus.UNREGISTERED]

    def polls(self) -> dict[bytes, int]:
        """By public key, how often the node has asked for a message since the SuperLink started."""
        url = f"http://{self.server.control}{POLLS_PATH}"
        response = self._http.get(url, headers={TOKEN_HEADER: f"Bearer {self._token}"})
        response.raise_for_status()
        return {base64.b64decode(key): count for key, count in response.json().items()}

    def start_run(self) -> tuple[int, str]:
        """Start a run whose ServerApp is this process; stop runs that others left open.

        Returns:
            Flower's run id, and the token of its task.
        """
        with self._control() as control:
            for run in control.ListRuns(ListRunsRequest()).run_dict.values():
                if run.status.status != Status.FINISHED:
                    with contextlib.suppress(httpx.HTTPStatusError):  # finished in the meantime
                        control.StopRun(StopRunRequest(run_id=run.run_id))
            content = _app()
            fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
            run_id = control.StartRun(StartRunRequest(fab=fab)).run_id
        deadline = time.monotonic() + ACQUIRE_SECONDS
        with RuntimeHttpClient.from_server_address(
            self.server.control, True, None, self.interceptors("SuperExec")
        ) as runtime:
            while time.monotonic() < deadline:
                acquired = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if acquired.task.run_id == run_id and acquired.token:
                    return run_id, acquired.token
        raise ConfigError(f"the server at {self.server.control} does not hand out run {run_id}; see its log")


def _app() -> bytes:
    """Flower app of a run: it names the installed package; no node runs the code in it."""
    project = f"""
[project]
name = "fednnunet"
version = "{__version__}"
description = "Names the installed fednnunet."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fednnunet"

[tool.flwr.app.components]
serverapp = "fednnunet_app:app"
clientapp = "fednnunet_app:app"
"""
    module = "from fednnunet import client_app\n\napp = client_app.app\n"
    content, _ = build_fab_from_files({"pyproject.toml": project.encode(), "fednnunet_app.py": module.encode()})
    return content


def write_token(state: Path) -> Path:
    """Write a new operator's token that only its owner can read."""
    path = state / TOKEN_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(os.urandom(32).hex())
    return path
