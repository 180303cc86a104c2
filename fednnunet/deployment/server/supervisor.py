"""``fednnunet server up``: keeps Flower's SuperLink alive."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

from fednnunet import __version__
from fednnunet.config.node_file import LOOPBACK, split_address
from fednnunet.deployment.certificates import check_server_pair
from fednnunet.deployment.keys import nodes_folder, read_node_keys
from fednnunet.deployment.server.object_files import FOLDER
from fednnunet.deployment.server.operator_client import DATABASE, SERVER_FILE, ServerFacts, write_token
from fednnunet.deployment.supervision import SupervisedProcess, ended_by_signal, supervise
from fednnunet.errors import ConfigError
from fednnunet.files import has_free_space, write_atomically
from fednnunet.lock import locked
from fednnunet.processes import sigint_ignored_by_children

LOG_FILE = "server.log"
DATABASE_NOT_USABLE = 76
"""Exit code of a SuperLink that a restart would not help."""
BACKLOG = 128


def serve(keys: Path | None, address: str, state: Path, insecure: bool) -> None:
    """Run the server until a signal ends it; the SuperLink is restarted when it dies.

    A node may join if its public key is in ``keys``; key files may be added and removed while the server runs.

    Args:
        keys: folder that ``fednnunet keys`` made: ``server.crt``, ``server.key``, ``nodes/*/node.pub``.
        address: ``host:port`` that nodes connect to.
        state: folder for the database, the log and the operator's token.
        insecure: plain HTTP without node keys, on this machine only.

    Raises:
        ConfigError: keys are missing or damaged, the address is in use, the state folder cannot be written, or plain
            HTTP was requested for other machines.
    """
    check_keys(keys, address, insecure)
    os.umask(0o077)  # the database holds models, server.json names the operator endpoint
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        has_free_space(state)
    except OSError as error:
        raise ConfigError(f"the server cannot write to its folder {state}: {error.strerror}") from None
    ended = ended_by_signal()
    with locked(state), listen(address) as public, listen("127.0.0.1:0") as operator:
        facts = ServerFacts(
            address=address,
            control=f"127.0.0.1:{operator.getsockname()[1]}",
            tls=keys is not None,
            keys=None if keys is None else str(keys.resolve()),
            pid=os.getpid(),
            version=__version__,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_token(state)
        write_atomically(state / SERVER_FILE, json.dumps(dataclasses.asdict(facts), indent=1))
        if insecure:
            print("warning: plain HTTP and no node keys: anyone with an account on this machine can join", flush=True)
        how = "" if insecure else " (TLS, node keys)"
        print(f"the server listens at {address}{how}; log: {state / LOG_FILE}", flush=True)
        superlink = SupervisedProcess(
            "SuperLink",
            lambda: _start(state, public, operator, keys),
            final_exit_codes={DATABASE_NOT_USABLE: _not_usable(state)},
        )
        try:
            for _ in supervise([superlink], ended, lambda text: print(text, flush=True)):
                pass
        finally:
            (state / SERVER_FILE).unlink(missing_ok=True)
            print("the server has ended; nodes wait for its return")


def check_keys(keys: Path | None, address: str, insecure: bool) -> None:
    """Check that this server is safe to start.

    Raises:
        ConfigError: names what is missing, or why plain HTTP is not allowed.
    """
    host, _ = split_address(address)
    if insecure:
        if keys is not None:
            raise ConfigError("--insecure uses no keys; leave out the folder or the option")
        if host not in LOOPBACK:
            raise ConfigError(f"--insecure is for this machine (127.0.0.1) only, not for {host}; use `fednnunet keys`")
        return
    if keys is None:
        raise ConfigError("name the folder that `fednnunet keys` made (or --insecure, to try it on this machine)")
    for name in ("ca.crt", "server.crt", "server.key"):
        if not (keys / name).is_file():
            raise ConfigError(f"{keys} has no {name}; `fednnunet keys {keys} --server …` makes it")
    check_server_pair(keys)
    if not nodes_folder(keys).is_dir() or not any(read_node_keys(keys)):
        raise ConfigError(f"{keys} has no key of a node; `fednnunet keys {keys} --server … --node NAME` makes it")


@contextlib.contextmanager
def listen(address: str) -> Iterator[socket.socket]:
    """A listening socket that stays open while the process behind it restarts: new connections wait until then.

    Raises:
        ConfigError: the address is in use, or not one of this machine.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: only then asyncio sets TCP_NODELAY, without which each answer waits 40 ms for the last.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(f"the server cannot listen at {address}: {error.strerror}") from None
        listener.listen(BACKLOG)
        yield listener


def _start(state: Path, public: socket.socket, operator: socket.socket, keys: Path | None) -> BaseProcess:
    # Only the child imports it: that takes a second, and this process only supervises.
    process = multiprocessing.get_context("spawn").Process(
        target=_superlink, args=(state, public, operator, keys), name="superlink"
    )
    with sigint_ignored_by_children():
        process.start()
    return process


def _superlink(state: Path, public: socket.socket, operator: socket.socket, keys: Path | None) -> None:
    from fednnunet.deployment.server.superlink import run_superlink

    try:
        run_superlink(state, public, operator, keys, state / LOG_FILE)
    except ConfigError:
        sys.exit(DATABASE_NOT_USABLE)


def _not_usable(state: Path) -> ConfigError:
    return ConfigError(
        f"{state / DATABASE} is damaged, cannot be opened, or is of another version of Flower, or {FOLDER} beside it "
        f"cannot be used (see the end of {state / LOG_FILE}); move the files {DATABASE}* and {FOLDER} away and start "
        "the server again: runs go on from their own folders, nodes are registered from the keys"
    )
