"""Flower's SuperLink as an ASGI app, made as ``flower-superlink`` makes it.

Not part of Flower's public API, as :mod:`fednnunet.deployment.server.flower_internals`, but a second to import: only
the SuperLink's own process does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app


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
    return create_app(config, SuperLinkLifespan)


def node_id_lookup(app: FastAPI) -> Callable[[bytes], int | None]:
    """A function from a public key to the id of the node that is registered for it; None where there is none."""
    lookup: Callable[[bytes], int | None] = app.state.linkstate_factory.state().get_node_id_by_public_key
    return lookup
