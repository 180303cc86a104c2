"""``fednnunet server up``: Flower's SuperLink, the nodes' keys, and what keeps it alive."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

from fednnunet import __version__
from fednnunet.config.node_file import LOOPBACK, split_address
from fednnunet.deployment.keys import node_keys
from fednnunet.deployment.server.operator_client import GONE_AWAY, SERVER_FILE, Operator, ServerFacts, write_token
from fednnunet.deployment.supervision import SupervisedProcess, ended_by_signal, supervise
from fednnunet.errors import ConfigError
from fednnunet.files import write_atomically
from fednnunet.lock import locked

LOG_FILE = "server.log"
BACKLOG = 128


def serve(keys: Path | None, address: str, state: Path, insecure: bool) -> None:
    """Run the server until a signal ends it; the SuperLink is started again when it dies.

    Nodes are those whose public key lies in ``keys``; files that come or go while it runs are noticed.

    Args:
        keys: folder that ``fednnunet keys`` made: ``server.crt``, ``server.key``, ``nodes/*/node.pub``.
        address: ``host:port`` for nodes.
        state: folder of the database, the log and the operator's token.
        insecure: plain HTTP without node keys, on this machine only.

    Raises:
        ConfigError: keys are missing, the address is taken, or plain HTTP was asked for beyond this machine.
    """
    check_keys(keys, address, insecure)
    os.umask(0o077)  # the database holds models, server.json tells where the inner door is
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    ended = ended_by_signal()
    with locked(state), bound(address) as outer, bound("127.0.0.1:0") as inner:
        facts = ServerFacts(
            address=address,
            control=f"127.0.0.1:{inner.getsockname()[1]}",
            tls=keys is not None,
            keys=None if keys is None else str(keys.resolve()),
            pid=os.getpid(),
            version=__version__,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_token(state)
        write_atomically(state / SERVER_FILE, json.dumps(dataclasses.asdict(facts), indent=1))
        if insecure:
            print("warning: plain HTTP and no node keys: whoever has an account on this machine can join", flush=True)
        print(f"the server listens at {address}{'' if insecure else ' (TLS, node keys)'}; log: {state / LOG_FILE}")
        superlink = SupervisedProcess("SuperLink", lambda: _start(state, outer, inner, keys))
        registered: dict[str, Path] | None = None
        try:
            for _ in supervise([superlink], ended, lambda text: print(text, flush=True)):
                if keys is not None and (there := node_keys(keys)) != registered:
                    with contextlib.suppress(*GONE_AWAY):  # it is still starting: at the next look
                        _tell_register(*Operator(state).register(there), total=len(there))
                        registered = there
        finally:
            (state / SERVER_FILE).unlink(missing_ok=True)
            print("the server has ended; nodes wait for it to come back")


def check_keys(keys: Path | None, address: str, insecure: bool) -> None:
    """Whether this server is safe to start.

    Raises:
        ConfigError: says what is missing, or why plain HTTP cannot be had.
    """
    host, _ = split_address(address)
    if insecure:
        if keys is not None:
            raise ConfigError("--insecure uses no keys; leave the folder out, or the option")
        if host not in LOOPBACK:
            raise ConfigError(f"--insecure is for this machine (127.0.0.1) only, not for {host}; use `fednnunet keys`")
        return
    if keys is None:
        raise ConfigError("name the folder that `fednnunet keys` made (or --insecure, to try it on this machine)")
    for name in ("ca.crt", "server.crt", "server.key"):
        if not (keys / name).is_file():
            raise ConfigError(f"{keys} has no {name}; `fednnunet keys {keys} --server …` makes it")
    if not node_keys(keys):
        raise ConfigError(f"{keys} has no node's key; `fednnunet keys {keys} --server … --node NAME` makes it")


@contextlib.contextmanager
def bound(address: str) -> Iterator[socket.socket]:
    """A listening socket, kept while what serves it is started again: who connects meanwhile waits.

    Raises:
        ConfigError: the address is taken, or none of this machine.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ConfigError(f"the server cannot listen at {address}: {error.strerror}") from None
        listening.listen(BACKLOG)
        yield listening


def _start(state: Path, outer: socket.socket, inner: socket.socket, keys: Path | None) -> BaseProcess:
    # Imported by the child alone: it takes a second, and this process only watches.
    process = multiprocessing.get_context("spawn").Process(
        target=_superlink, args=(state, outer, inner, keys), name="superlink"
    )
    process.start()
    return process


def _superlink(state: Path, outer: socket.socket, inner: socket.socket, keys: Path | None) -> None:
    from fednnunet.deployment.server.superlink import run_superlink

    run_superlink(state, outer, inner, keys, state / LOG_FILE)


def _tell_register(new: list[str], gone: list[str], total: int) -> None:
    for name in new:
        print(f"node {name} may join", flush=True)
    for name in gone:
        print(f"node {name} may not join any more", flush=True)
    if not new and not gone:
        print(f"{total} nodes may join", flush=True)
