"""The operator's side of the server: register nodes, start a run and become its ServerApp.

What this uses of Flower 1.41 is not its public API: the range of versions is pinned, the tests run all of it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import Status
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient

from fednnunet import __version__
from fednnunet.errors import ConfigError

SERVER_FILE = "server.json"
TOKEN_FILE = "operator.token"  # noqa: S105  a file's name
POLLS_PATH = "/fednnunet/polls"
TOKEN_HEADER = "fednnunet-operator"  # noqa: S105
ACQUIRE_SECONDS = 30.0
GONE_AWAY = (httpx.TransportError, httpx.HTTPStatusError)
"""What calls to a server that is not there, or does not know the caller any more, end in."""


@dataclass(frozen=True)
class ServerFacts:
    """``server.json``: what the running server says of itself.

    Attributes:
        address: ``host:port`` for nodes.
        control: ``host:port`` for the operator, on this machine.
        tls: whether nodes need TLS and a key.
        keys: folder of keys and certificates.
        pid: of the process that keeps the server alive.
        version: of fednnunet.
        started: ISO time.
    """

    address: str
    control: str
    tls: bool
    keys: str | None
    pid: int
    version: str
    started: str


def read_server(state: Path) -> ServerFacts:
    """What the server with this state folder says of itself.

    Raises:
        ConfigError: no server was started with it.
    """
    try:
        return ServerFacts(**json.loads((state / SERVER_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{state} is no server's state folder; start the server (fednnunet server up), or name its folder: "
            "federation.server=…"
        ) from None


class OperatorToken:
    """Shows the operator's token with every request."""

    def __init__(self, token: str) -> None:
        self._value = f"Bearer {token}"

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Flower's hook around a request."""
        context.request.headers[TOKEN_HEADER] = self._value
        return call_next(context)


class Operator:
    """Talks to the server's inner door.

    Args:
        state: folder of the server's state.

    Raises:
        ConfigError: there is no server, or its token cannot be read by this user.
    """

    def __init__(self, state: Path) -> None:
        self.server = read_server(state)
        _take_no_proxy("127.0.0.1")
        try:
            self._token = (state / TOKEN_FILE).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"{state / TOKEN_FILE} cannot be read ({error.strerror}); use the server's user"
            ) from None

    def interceptors(self, component: str) -> list[Any]:
        """What every client of the inner door needs."""
        return [OperatorToken(self._token), RuntimeVersionHttpInterceptor(component_name=component)]

    @contextlib.contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        with ControlHttpClient.from_server_address(self.server.control, True, None, self.interceptors("flwr CLI")) as c:
            yield c

    def nodes(self) -> list[NodeInfo]:
        """All registered nodes: name, whether online, last heartbeat."""
        with self._control() as control:
            return list(control.ListNodes(ListNodesRequest()).nodes_info)

    def polls(self) -> dict[bytes, int]:
        """Public key to how often the node has asked for a message since the SuperLink's start."""
        url = f"http://{self.server.control}{POLLS_PATH}"
        response = httpx.get(url, headers={TOKEN_HEADER: f"Bearer {self._token}"}, timeout=30)
        response.raise_for_status()
        return {base64.b64decode(key): count for key, count in response.json().items()}

    def register(self, keys: Mapping[str, Path]) -> tuple[list[str], list[str]]:
        """Let the server know these nodes' keys, by name, and no others.

        Args:
            keys: node name to its public key file (OpenSSH).

        Returns:
            Names that are new, and names that are not in any more.
        """
        wanted = {name: _public_key(path) for name, path in keys.items()}
        known = {node.name: node for node in self.nodes()}
        gone = [name for name, node in known.items() if wanted.get(name) != node.public_key]
        new = [name for name, key in wanted.items() if name not in known or known[name].public_key != key]
        with self._control() as control:
            for name in gone:
                control.UnregisterNode(UnregisterNodeRequest(node_id=known[name].node_id))
            for name in new:
                control.RegisterNode(RegisterNodeRequest(public_key=wanted[name], name=name))
        return new, [name for name in gone if name not in wanted]

    def start_run(self) -> tuple[int, str]:
        """Start a run, as whose ServerApp this process acts; runs that others left open are stopped.

        Returns:
            Flower's run id, and the token of its task.
        """
        with self._control() as control:
            for run in control.ListRuns(ListRunsRequest()).run_dict.values():
                if run.status.status != Status.FINISHED:
                    with contextlib.suppress(httpx.HTTPStatusError):  # finished meanwhile
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


def _take_no_proxy(host: str) -> None:
    """The inner door is on this machine: a proxy for the way out does not know it, and must not see the token."""
    exempt = getproxies().get("no", "")
    if host not in exempt.split(","):
        # Of the two spellings the small one counts where both are there.
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (exempt, host)))


def _public_key(path: Path) -> bytes:
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no public key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} holds a key of another kind; `fednnunet keys` makes ECDSA keys")
    return public_key_to_bytes(key)


def _app() -> bytes:
    """The Flower app that a run is of; it names the installed package, and no node runs it from here."""
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
    """A new operator's token, readable by its owner alone."""
    path = state / TOKEN_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(os.urandom(32).hex())
    return path
