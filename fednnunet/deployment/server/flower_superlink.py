"""Flower's SuperLink as an ASGI app, made as ``flower-superlink`` makes it.

Not part of Flower's public API, as :mod:`fednnunet.deployment.server.flower_internals`, but a second to import: only
the SuperLink's own process does.
"""

from __future__ import annotations

import contextlib
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.state.schema.linkstate_models import Node
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from flwr.superlink.routers.control.middlewares import (
    ControlAuthenticationMiddleware,
    ControlEventLogMiddleware,
    ControlLicenseMiddleware,
    ControlSensitiveResponseMiddleware,
)
from flwr.superlink.routers.fleet.middlewares import FleetEventLogMiddleware
from sqlalchemy import case, update
from starlette.types import Receive, Scope, Send

CONTROL_PREFIX = "/v1/control/"
OF_CONTROL: set[Any] = {
    ControlAuthenticationMiddleware,
    ControlEventLogMiddleware,
    ControlLicenseMiddleware,
    ControlSensitiveResponseMiddleware,
    FleetEventLogMiddleware,  # there is no event log here
}
"""Layers of Flower's app that pass on what is not for the Control API as it is, for a millisecond each."""


def superlink_app(database: Path, auth: bool) -> FastAPI:
    """A SuperLink that starts no ServerApps itself: each run is driven by the process that asks for its task.

    Args:
        database: SQLite file of its state.
        auth: whether nodes need a registered key.
    """
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
        database=str(database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    _skip_layers_of_control(app)
    return app


def _skip_layers_of_control(app: FastAPI) -> None:
    """Keep requests to other APIs from layers that are for the Control API only."""
    layers = app.user_middleware
    every = app.build_middleware_stack()
    app.user_middleware = [layer for layer in layers if layer.cls not in OF_CONTROL]
    others = app.build_middleware_stack()
    app.user_middleware = layers

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_other = scope["type"] == "http" and not scope["path"].startswith(CONTROL_PREFIX)
        await (others if is_other else every)(scope, receive, send)

    app.middleware_stack = serve


def discard_upload(app: FastAPI, session: str) -> None:
    """Give up a message whose objects have not all come, as Flower does after three minutes without any.

    Args:
        app: of :func:`superlink_app`.
        session: id that Flower gave when the message's head came; one whose objects have all come is over.
    """
    app.state.linkstate_factory.state()._cleanup_push_session(session, cleanup_messages=True)


@dataclass(frozen=True)
class KnownNode:
    """A node that a SuperLink knows.

    Attributes:
        node_id: Flower's id.
        name: that its key was registered under.
        public_key: as Flower's messages name it.
        is_registered: whether it may join; Flower keeps those that may no longer.
    """

    node_id: int
    name: str
    public_key: bytes
    is_registered: bool


class NodeRegister:
    """Nodes that a SuperLink knows.

    Flower's Control API registers a key once, and never again after it was unregistered; :meth:`restore` does.

    Args:
        app: of :func:`superlink_app`.
    """

    def __init__(self, app: FastAPI) -> None:
        self._state = app.state.linkstate_factory.state()

    def node_id(self, public_key: bytes) -> int | None:
        """Id of the node that is registered for a public key; None where there is none."""
        found: int | None = self._state.get_node_id_by_public_key(public_key)
        return found

    def name(self, public_key: str) -> str:
        """Name that a public key, in base64, is registered under; empty where it is not."""
        try:
            node_id = self.node_id(b64decode(public_key, validate=True))
        except ValueError:
            return ""
        found = [] if node_id is None else self._state.get_node_info(node_ids=[node_id])
        return str(found[0].name) if found else ""

    def nodes(self) -> list[KnownNode]:
        """All nodes that are registered, or were."""
        return [
            KnownNode(node.node_id, node.name, node.public_key, node.status != NodeStatus.UNREGISTERED)
            for node in self._state.get_node_info()
        ]

    def add(self, name: str, public_key: bytes) -> None:
        """Register a key that was never registered before."""
        self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, HEARTBEAT_DEFAULT_INTERVAL, name=name)

    def remove(self, node_id: int) -> None:
        """Unregister a node: it is offline from now on."""
        self._state.delete_node(NOOP_FLWR_AID, node_id)

    def rename(self, public_key: str, name: str) -> None:
        """Give the node with a public key, in base64, another name."""
        with contextlib.suppress(ValueError):
            if (node_id := self.node_id(b64decode(public_key, validate=True))) is not None:
                self.restore(node_id, name)

    def restore(self, node_id: int, name: str) -> None:
        """Register a node again, with its id, or under another name."""
        now_registered = case((Node.status == NodeStatus.UNREGISTERED, NodeStatus.REGISTERED), else_=Node.status)
        change = update(Node).where(Node.node_id == uint64_to_int64(node_id))
        with self._state.session() as session:
            session.execute(change.values(status=now_registered, unregistered_at=None, name=name))
