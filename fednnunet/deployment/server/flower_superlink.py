"""Flower's SuperLink as an ASGI app, made as ``flower-superlink`` makes it.

Not part of Flower's public API, as :mod:`fednnunet.deployment.server.flower_internals`, but a second to import: only
the SuperLink's own process does.
"""

from __future__ import annotations

import contextlib
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.proto.runtime_pb2 import GetNodesRequest, PullAppMessagesRequest
from flwr.supercore.constant import TASK_TOKEN_HEADER, NodeStatus
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.state.schema.linkstate_models import Node
from flwr.supercore.state.schema.objectstore_models import StoredObject
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
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from sqlalchemy import case, update
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from fednnunet.deployment.server.staging import staging

__all__ = [
    "FRESH_SECONDS",
    "OF_CONTROL",
    "DirectCalls",
    "KnownNode",
    "NodeRegister",
    "SqlObjectStore",
    "StoredObject",
    "discard_upload",
    "get_object_id",
    "superlink_app",
    "use_object_store",
    "validate_object_content",
]

FRESH_SECONDS = 1.0
"""How long it is taken for granted that a node is registered, before Flower itself checks that again; and that no task
has expired, which is so after many seconds without a sign of life."""
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
    _end_expired_tasks_seldom(app.state.linkstate_factory.state())
    return app


def _end_expired_tasks_seldom(state: Any) -> None:
    """Look for expired tasks once in :data:`FRESH_SECONDS`, not whenever a node fetches or sends a part of a message.

    Flower does so by two updates, for which each part of a message would wait until all others have written.
    """
    end_expired, last = state._cleanup_expired_task_tokens, -FRESH_SECONDS

    def end_expired_tasks() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= FRESH_SECONDS:
            last = now
            end_expired()

    state._cleanup_expired_task_tokens = end_expired_tasks


def use_object_store(app: FastAPI, store: ObjectStore) -> None:
    """Let a SuperLink keep objects in ``store``; before it serves.

    Args:
        app: of :func:`superlink_app`.
        store: in place of the one that Flower has made.
    """
    factory = app.state.linkstate_factory
    factory.objectstore_factory.store_instance = factory.state()._object_store = store


def _skip_layers_of_control(app: FastAPI) -> None:
    """Keep requests to other APIs from layers that are for the Control API only."""
    layers = app.user_middleware
    every = app.build_middleware_stack()
    app.user_middleware = [layer for layer in layers if layer.cls not in OF_CONTROL]
    others = app.build_middleware_stack()
    app.user_middleware = layers
    direct = DirectCalls(app)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(CONTROL_PREFIX):
            await every(scope, receive, send)
        elif scope["path"] in direct.paths and scope["method"] == "POST":
            await direct(scope, receive, send)
        else:
            await others(scope, receive, send)

    app.middleware_stack = serve


class DirectCalls:
    """The calls that a round consists of, by the hundred, handled as Flower's routes do, without FastAPI between.

    Each checks the same, and calls the same handler, in one thread in place of six.

    Args:
        app: of :func:`superlink_app`.

    Attributes:
        paths: of these calls.
    """

    def __init__(self, app: FastAPI) -> None:
        self._state = app.state.linkstate_factory.state
        self._check_version = VersionDependency(
            component_name="SuperLink", connection_name="Caller <-> SuperLink Runtime API"
        )
        fleet, runtime = fleet_handlers, runtime_handlers
        self._calls: dict[str, tuple[type[Any], Callable[[Request, Any], Any]]] = {
            "/v1/fleet/push-object": (PushObjectRequest, self._of_node(staging(fleet.push_object))),
            "/v1/fleet/pull-object": (PullObjectRequest, self._of_node(fleet.pull_object)),
            "/v1/fleet/pull-messages": (PullMessagesRequest, self._of_node(self._pull_messages)),
            "/v1/runtime/push-object": (PushObjectRequest, self._of_server_app(staging(runtime.push_object))),
            "/v1/runtime/pull-object": (PullObjectRequest, self._of_server_app(runtime.pull_object)),
            "/v1/runtime/pull-messages": (PullAppMessagesRequest, self._of_server_app(runtime.pull_messages)),
            "/v1/runtime/get-nodes": (GetNodesRequest, self._of_server_app(runtime.get_nodes)),
        }
        self.paths = self._calls.keys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await http_error_translator(Request(scope, receive), self._answer)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        message_type, handle = self._calls[request.scope["path"]]
        ProtobufTranslationMiddleware._check_request_media_type(request)
        body = await request.body()

        def work() -> bytes:
            message = ProtobufTranslationMiddleware._parse_request(body, message_type)
            request.state.protobuf_request = message  # which Flower's checks read
            answer: bytes = handle(request, message).SerializeToString()
            return answer

        return Response(await run_in_threadpool(work), media_type=PROTOBUF_MEDIA_TYPE)

    def _of_node(self, handler: Callable[..., Any]) -> Callable[[Request, Any], Any]:
        def handle(request: Request, message: Any) -> Any:
            authenticate_node(request)
            return handler(message, self._state())

        return handle

    def _of_server_app(self, handler: Callable[..., Any]) -> Callable[[Request, Any], Any]:
        def handle(request: Request, message: Any) -> Any:
            self._check_version(request)
            state = self._state()
            task = authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state)
            return handler(message, state, task)

        return handle

    @staticmethod
    def _pull_messages(message: Any, state: Any) -> Any:
        return fleet_handlers.pull_messages(message, state, state.object_store)


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
        self._found: dict[bytes, tuple[float, int, str]] = {}

    def node_id(self, public_key: bytes) -> int | None:
        """Id of the node that is registered for a public key; None where there is none."""
        found = self._find(public_key)
        return None if found is None else found[0]

    def name(self, public_key: str) -> str:
        """Name that a public key, in base64, is registered under; empty where it is not."""
        try:
            found = self._find(b64decode(public_key, validate=True))
        except ValueError:
            return ""
        return "" if found is None else found[1]

    def _find(self, public_key: bytes) -> tuple[int, str] | None:
        """Id and name, as they were at most :data:`FRESH_SECONDS` ago: each request asks twice."""
        found = self._found.get(public_key)
        now = time.monotonic()
        if found is None or now - found[0] > FRESH_SECONDS:
            self._found.pop(public_key, None)
            node_id = self._state.get_node_id_by_public_key(public_key)
            nodes = [] if node_id is None else self._state.get_node_info(node_ids=[node_id])
            if not nodes:
                return None
            found = self._found[public_key] = now, node_id, str(nodes[0].name)
        return found[1:]

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
        self._found.clear()

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
        self._found.clear()
