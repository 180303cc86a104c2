"""A real Flower server with TLS and node keys, as ``fednnunet server up`` runs it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from fednnunet import __version__


@contextmanager
def flower_server(
    keys: Path, database: Path, fednnunet_version: str | None = __version__
) -> Iterator[tuple[int, LinkState]]:
    """A SuperLink on a port of this machine with the certificate in ``keys``; the port, and its state.

    Args:
        keys: folder with ``server.crt`` and ``server.key``.
        database: file for its state.
        fednnunet_version: that it says it has; None for plain Flower, which says nothing of it.
    """
    certificate, key = keys / "server.crt", keys / "server.key"
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=False,
        certificates=None,
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    if fednnunet_version is not None:
        app.add_api_route("/v1/fleet/fednnunet", lambda: {"fednnunet": fednnunet_version, "flwr": "1.41.0"})
    server = uvicorn.Server(uvicorn.Config(app, ssl_certfile=certificate, ssl_keyfile=key, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1], app.state.linkstate_factory.state()
        finally:
            server.should_exit = True
            thread.join()


def register(state: LinkState, public_key_file: Path) -> int:
    """Let ``state`` know a node by its public key; its id."""
    public = load_ssh_public_key(public_key_file.read_bytes())
    return state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key_to_bytes(public), 0)
