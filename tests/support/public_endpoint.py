"""The server's public endpoint, as ``fednnunet server up`` serves it: Flower's Fleet API with TLS and node keys."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fednnunet.deployment.server.admission import Admission
from fednnunet.deployment.server.connection_limits import LimitedConnection, LimitedServer
from fednnunet.deployment.server.flower_superlink import NodeRegister, discard_upload, superlink_app
from fednnunet.deployment.server.gateway import public_endpoint
from fednnunet.deployment.server.signatures import Signatures
from fednnunet.deployment.server.uploads import Uploads


@contextmanager
def flower_server(
    keys: Path, state: Path, plain: bool = False, notify: Callable[[str], None] = print
) -> Iterator[tuple[int, LinkState]]:
    """A SuperLink on a port of this machine with the certificate in ``keys``; the port, and what it knows.

    Args:
        keys: folder with ``server.crt`` and ``server.key``.
        state: folder for its database.
        plain: without the gateway, as Flower serves it.
        notify: gets lines for the operator.
    """
    state.mkdir()
    app = superlink_app(state / "state.db", auth=True)
    known = app.state.linkstate_factory.state()
    register = NodeRegister(app)
    admission, uploads = Admission(register.name, notify), Uploads(partial(discard_upload, app))
    gateway = public_endpoint(app, Counter(), admission, uploads, Signatures(register.node_id))
    config = uvicorn.Config(
        app if plain else gateway,
        http="auto" if plain else LimitedConnection,
        ssl_certfile=keys / "server.crt",
        ssl_keyfile=keys / "server.key",
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config) if plain else LimitedServer(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1], known
        finally:
            server.should_exit = True
            thread.join()


def register(known: LinkState, public_key_file: Path) -> int:
    """Let a SuperLink know a node by its public key, under the name of its folder; the node's id."""
    public, name = load_ssh_public_key(public_key_file.read_bytes()), public_key_file.parent.name
    return known.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key_to_bytes(public), 0, name=name)
