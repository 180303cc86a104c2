"""Networks for tests: machines as network namespaces, and a link with the faults of real ones.

:func:`machines` gives a server and nodes that see each other over Ethernet and nothing of each other's loopback.
:class:`Link` stands between a client and a server on one machine or across namespaces; it forwards bytes, TLS or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

# machines ------------------------------------------------------------------------------------------------

PREFIX = "fednnunet"
CLONE_NEWNET = 0x40000000
_networks = itertools.count()


@dataclass(frozen=True)
class Machine:
    """A network namespace with an Ethernet address and a loopback of its own.

    Attributes:
        namespace: as ``ip netns`` knows it.
        address: IPv4.
        hub: namespace of the bridge that all machines are connected to.
        port: the machine's at the bridge.
    """

    namespace: str
    address: str
    hub: str
    port: str

    def command(self, *arguments: str) -> list[str]:
        """``arguments`` as a command that runs on this machine; it becomes that process, so its pid is the same."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def run(self, *arguments: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on this machine to its end."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=timeout, **options)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command on this machine; what still runs when the network goes is killed."""
        return subprocess.Popen(self.command(*arguments), text=True, **options)

    def unplug(self) -> None:
        """Pull the cable: packets are lost in silence, both ways."""
        _ip("-n", self.hub, "link", "set", self.port, "down")

    def plug(self) -> None:
        """Put it in again."""
        _ip("-n", self.hub, "link", "set", self.port, "up")


@dataclass(frozen=True)
class Network:
    """A server and nodes at one bridge."""

    server: Machine
    nodes: list[Machine]


def no_namespaces() -> str | None:
    """Why this machine has no network namespaces for us; None where it has."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    bridge = subprocess.run(["ip", "-n", probe, "link", "add", "br0", "type", "bridge"], capture_output=True, text=True)
    _ip("netns", "delete", probe)
    return f"the kernel has no bridges: {bridge.stderr.strip()}" if bridge.returncode else None


@contextlib.contextmanager
def machines(nodes: int) -> Iterator[Network]:
    """A server, 10.77.0.1, and ``nodes`` nodes, 10.77.1.1 and so on; skips the test where there can be none.

    On leaving, whatever still runs on them is killed, and nothing of the network stays; what a killed test has left
    is removed by the next.
    """
    reason = no_namespaces()
    if reason is not None:
        pytest.skip(reason)
    _remove_left_over()
    base = f"{PREFIX}-{os.getpid()}-{next(_networks)}"
    hub = f"{base}-hub"
    addresses = ["10.77.0.1", *(f"10.77.1.{number}" for number in range(1, nodes + 1))]
    names = [f"{base}-server", *(f"{base}-node{number}" for number in range(1, nodes + 1))]
    found = [
        Machine(namespace, address, hub, f"port{number}")
        for number, (namespace, address) in enumerate(zip(names, addresses, strict=True))
    ]
    try:
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        _ip("-n", hub, "address", "add", "10.77.255.254/16", "dev", "br0")
        _ip("-n", hub, "link", "set", "lo", "up")
        for machine in found:
            _connect(machine)
        yield Network(found[0], found[1:])
    finally:
        for namespace in (*names, hub):
            _remove(namespace)


def _connect(machine: Machine) -> None:
    _ip("netns", "add", machine.namespace)
    pair = ("type", "veth", "peer", "name", "eth0", "netns", machine.namespace)
    _ip("-n", machine.hub, "link", "add", machine.port, *pair)
    _ip("-n", machine.hub, "link", "set", machine.port, "master", "br0", "up")
    _ip("-n", machine.namespace, "address", "add", f"{machine.address}/16", "dev", "eth0")
    for interface in ("lo", "eth0"):
        _ip("-n", machine.namespace, "link", "set", interface, "up")


def _remove_left_over() -> None:
    """Namespaces of tests whose process is gone."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        match = re.fullmatch(rf"{PREFIX}-(\d+)-.+", name)
        if match and not psutil.pid_exists(int(match[1])):
            _remove(name)


def _remove(namespace: str) -> None:
    """Kill what runs in a namespace, and delete it with its interfaces; nothing where it is not there."""
    if not Path("/run/netns", namespace).exists():
        return
    for pid in _ip("netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _enter(namespace: str) -> None:
    """Move the calling thread into a network namespace; sockets that it makes from now on are there."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if library.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"network namespace {namespace}")


# link ----------------------------------------------------------------------------------------------------

CHUNK = 2**18
"""Most bytes that are read at once."""
SLICES_PER_SECOND = 50
"""A limited bandwidth passes bytes on in so many portions."""
IN_FLIGHT = 32
"""Chunks of a connection under way in one direction; then its sender has to wait."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing a socket reset its connection."""

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Trouble:
    """Random faults of a link, the same for the same seed.

    Attributes:
        seed: of what happens when.
        every: mean seconds between two.
        stall: mean seconds that nothing passes.
        resets: share of faults that reset all connections; the others stall.
    """

    seed: int
    every: float
    stall: float = 0.5
    resets: float = 0.0


class Link:
    """A way to a server that can be slow, bad, cut or silent; a context manager.

    Args:
        host: of the server, IPv4.
        port: of the server.
        delay: seconds that bytes need, one way.
        bandwidth: bytes per second, each way, of all connections together; None for what the machine can do.
        trouble: random faults.
        namespace: network namespace in which the link listens and reaches the server.
        listen: IPv4 address at which clients find it.

    Attributes:
        delay: may be changed at any time.
        bandwidth: may be changed at any time.
        port: at which clients find it.
        bytes_up: passed on to the server.
        bytes_down: passed on to clients.
        connections: that clients have opened so far.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        delay: float = 0.0,
        bandwidth: float | None = None,
        trouble: Trouble | None = None,
        namespace: str | None = None,
        listen: str = "127.0.0.1",
    ) -> None:
        self.delay, self.bandwidth = delay, bandwidth
        self.bytes_up = self.bytes_down = self.connections = 0
        self.port = 0
        self._server, self._listen, self._trouble, self._namespace = (host, port), listen, trouble, namespace
        self._free_at: dict[Direction, float] = {"up": 0.0, "down": 0.0}
        self._open: set[asyncio.Task[None]] = set()
        self._refuses = False
        self._started: threading.Event = threading.Event()
        self._failure: BaseException | None = None

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"{self._listen}:{self.port}"

    def __enter__(self) -> Link:
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def cut(self) -> None:
        """Reset all connections, and refuse new ones, until :meth:`restore`; returns when it is done."""
        self._refuses = True
        asyncio.run_coroutine_threadsafe(self._reset_all(), self._loop).result()

    def hold(self) -> None:
        """Silence: connections stay, nothing passes, until :meth:`restore`."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def restore(self) -> None:
        """As before :meth:`cut` and :meth:`hold`."""
        self._refuses = False
        self._loop.call_soon_threadsafe(self._passes.set)

    # in the link's thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._namespace is not None:
                _enter(self._namespace)
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._end, self._passes = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._passes.set()
        with socket.create_server((self._listen, 0)) as listener:
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            tasks = [asyncio.create_task(self._accept(listener))]
            if self._trouble is not None:
                tasks.append(asyncio.create_task(self._make_trouble(self._trouble)))
            self._started.set()
            await self._end.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                if self._refuses:
                    _reset_on_close(client)
                    client.close()
                    continue
                self.connections += 1
                task = group.create_task(self._connect(client))
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    async def _connect(self, client: socket.socket) -> None:
        with client, socket.socket() as server:
            try:
                for end in (client, server):
                    end.setblocking(False)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(server, self._server)
                # Where one direction fails, the connection is over.
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass_on(client, server, "up"))
                    group.create_task(self._pass_on(server, client, "down"))
            except* (OSError, asyncio.CancelledError):
                _reset_on_close(client)
                _reset_on_close(server)

    async def _pass_on(self, source: socket.socket, target: socket.socket, direction: Direction) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(source, under_way))
            group.create_task(self._write(under_way, target, direction))

    async def _read(self, source: socket.socket, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            bandwidth = self.bandwidth
            size = CHUNK if bandwidth is None else max(1, min(CHUNK, int(bandwidth / SLICES_PER_SECOND)))
            data = await self._loop.sock_recv(source, size)
            await under_way.put((self._loop.time(), data))

    async def _write(
        self, under_way: asyncio.Queue[tuple[float, bytes]], target: socket.socket, direction: Direction
    ) -> None:
        while True:
            sent, data = await under_way.get()
            await self._sleep_until(sent + self.delay)
            await self._passes.wait()
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            bandwidth = self.bandwidth
            if bandwidth is not None:
                begin = max(self._loop.time(), self._free_at[direction])
                self._free_at[direction] = begin + len(data) / bandwidth
                await self._sleep_until(self._free_at[direction])
            if direction == "up":
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)
            await self._loop.sock_sendall(target, data)

    async def _sleep_until(self, when: float) -> None:
        left = when - self._loop.time()
        if left > 0:
            await asyncio.sleep(left)

    async def _make_trouble(self, trouble: Trouble) -> None:
        rng = random.Random(trouble.seed)
        while True:
            await asyncio.sleep(rng.expovariate(1 / trouble.every))
            resets, seconds = rng.random() < trouble.resets, rng.expovariate(1 / trouble.stall)
            if resets:
                await self._reset_all()
            elif self._passes.is_set():  # else it is held already
                self._passes.clear()
                await asyncio.sleep(seconds)
                self._passes.set()

    async def _reset_all(self) -> None:
        connections = list(self._open)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _reset_on_close(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
