"""The server, its nodes and the run, as they are now; :mod:`fednnunet.deployment.server.status_screen` shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from cryptography import x509
from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from fednnunet.deployment.server.flower_internals import HEARTBEAT_PATIENCE, NodeInfo
from fednnunet.deployment.server.operator_client import GONE_AWAY, Operator, ServerFacts, read_server
from fednnunet.deployment.server.run_status import STATUS_FILE
from fednnunet.errors import ConfigError, first_problem

ONLINE = "online"

AskNodes = Callable[[Path], list[NodeInfo]]


class NodeProgress(BaseModel):
    """Values of a node's last training reply."""

    model_config = ConfigDict(frozen=True)

    round: int
    train_loss: float | None = None
    pseudo_dice: float | None = None
    seen: AwareDatetime | None = None


class RunState(BaseModel):
    """``run_status.json`` of a server's state folder, which the run keeps up to date.

    Attributes:
        run: folder of the run.
        stage: stage of the run, by :class:`~fednnunet.server.run_observer.RunObserver`.
        waiting_for: names of nodes without which the run does not continue.
        message: last line for the operator.
        updated: time of the last change.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    strategy: str
    dataset: str
    stage: str
    fold: int | str | None = None
    round: int = 0
    rounds: int = 0
    nodes: dict[str, NodeProgress] = {}
    waiting_for: list[str] = []
    message: str = ""
    updated: AwareDatetime
    finished: bool = False


@dataclass(frozen=True)
class NodeStatus:
    """One registered node.

    Attributes:
        seen: approximate time of its last heartbeat; None before the first.
        progress: its last round in the run, if it took part.
    """

    name: str
    online: bool
    seen: datetime | None
    progress: NodeProgress | None


@dataclass(frozen=True)
class Status:
    """Server, nodes and run at one moment.

    Attributes:
        server: where it listens, and how.
        problem: why it did not answer; None when it did.
        expires: when its certificate expires; None without TLS.
        nodes: registered nodes; empty when the server did not answer.
        run: current or last run; None before the first.
    """

    server: ServerFacts
    problem: str | None
    expires: datetime | None
    nodes: list[NodeStatus] = field(default_factory=list)
    run: RunState | None = None


def ask_nodes(state: Path) -> list[NodeInfo]:
    """The nodes that the SuperLink knows."""
    return Operator(state).nodes()


def read_status(state: Path, ask: AskNodes = ask_nodes) -> Status:
    """Read the status of the server with the state folder ``state``, its nodes and its run.

    Args:
        state: the server's folder.
        ask: reads the nodes; called with ``state`` while the server runs.

    Raises:
        ConfigError: no server was started there, or a file in it cannot be read.
    """
    server, run = read_server(state), _read_run(state)
    expires = _expiry(Path(server.keys) / "server.crt") if server.keys is not None else None
    if not _is_running(server):
        problem = (
            f"has died: process {server.pid} is gone; restart it with the same --state {state}, "
            "nodes reconnect by themselves"
        )
        return Status(server, problem, expires, run=run)
    try:
        registered = ask(state)
    except GONE_AWAY as error:
        why = str(error) or type(error).__name__
        problem = f"does not answer at {server.control} ({why}); see {state / 'server.log'}"
        return Status(server, problem, expires, run=run)
    progress = run.nodes if run is not None else {}
    nodes = sorted((_node_status(info, progress) for info in registered), key=lambda node: node.name)
    return Status(server, None, expires, nodes, run)


def _read_run(state: Path) -> RunState | None:
    path = state / STATUS_FILE
    try:
        return RunState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); use the server's user") from None
    except ValidationError as error:
        raise ConfigError(f"{path} was not written by a run: {first_problem(error, 'file')}") from None


def _expiry(certificate: Path) -> datetime:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate} cannot be read: {error}") from None


def _is_running(server: ServerFacts) -> bool:
    """Whether its process is alive; another process may have its number now."""
    try:
        started = psutil.Process(server.pid).create_time()
    except psutil.NoSuchProcess:
        return False
    return started < datetime.fromisoformat(server.started).timestamp() + 1  # written in whole seconds


def _node_status(info: NodeInfo, progress: Mapping[str, NodeProgress]) -> NodeStatus:
    seen = None
    if info.HasField("online_until") and info.HasField("last_activated_at"):
        heartbeat = datetime.fromtimestamp(info.online_until - HEARTBEAT_PATIENCE * info.heartbeat_interval, UTC)
        seen = max(heartbeat, datetime.fromisoformat(info.last_activated_at))
    return NodeStatus(info.name or str(info.node_id), info.status == ONLINE, seen, progress.get(info.name))


def as_json(status: Status) -> str:
    """The status as JSON; times in ISO 8601, unknown values are null."""
    return TypeAdapter(Status).dump_json(status, indent=1).decode()
