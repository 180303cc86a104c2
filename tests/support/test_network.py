"""The networks that other tests stand on do what they say."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fednnunet.deployment.keys import make_keys
from tests.support.network import PREFIX, Link, Machine, Trouble, machines

SECONDS = 20
"""After which what does not come is missing."""


@contextlib.contextmanager
def echo_server(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Sends back what it gets; its port."""

    def echo(end: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(end, server_side=True) if context else end as connection:
            while data := connection.recv(2**16):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener was shut
                while True:
                    threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def there_and_back(link: Link, data: bytes) -> float:
    """Seconds that ``data`` needs through the link and back, on a connection of its own."""
    with socket.create_connection(("127.0.0.1", link.port), SECONDS) as client:

        def send() -> None:
            with contextlib.suppress(OSError):  # the receiving end tells of it
                client.sendall(data)

        started = time.perf_counter()
        sender = threading.Thread(target=send)
        sender.start()
        assert receive(client, len(data)) == data
        sender.join()
        return time.perf_counter() - started


def receive(client: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = client.recv(2**16)
        if not data:
            raise ConnectionResetError(f"the connection ended after {len(received)} bytes")
        received += data
    return bytes(received)


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


def test_bytes_pass_unchanged_and_are_counted_each_way() -> None:
    data = random_bytes(5_000_000)
    with echo_server() as port, Link("127.0.0.1", port) as link:
        there_and_back(link, data)
        there_and_back(link, data[:7])
        assert (link.bytes_up, link.bytes_down) == (len(data) + 7, len(data) + 7)
        assert link.connections == 2


def test_tls_passes(tmp_path: Path) -> None:
    make_keys(tmp_path, ["127.0.0.1"], [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    with (
        echo_server(context) as port,
        Link("127.0.0.1", port) as link,
        socket.create_connection(("127.0.0.1", link.port), SECONDS) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(b"an image" * 1000)
        assert receive(client, 8000) == b"an image" * 1000
        assert link.bytes_up > 8000


def test_delay_is_there_each_way() -> None:
    with echo_server() as port, Link("127.0.0.1", port, delay=0.2) as link:
        assert 0.4 <= there_and_back(link, b"ping") < 0.7
        link.delay = 0.0
        assert there_and_back(link, b"ping") < 0.2


def test_delay_does_not_limit_bandwidth() -> None:
    with echo_server() as port, Link("127.0.0.1", port, delay=0.2) as link:
        assert there_and_back(link, random_bytes(20_000_000)) < 2.0, "not a fifth of a second a chunk"


def test_bandwidth_is_kept_by_all_connections_together() -> None:
    data = random_bytes(200_000)
    with echo_server() as port, Link("127.0.0.1", port, bandwidth=500_000) as link:
        started = time.perf_counter()
        both = [threading.Thread(target=there_and_back, args=(link, data)) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert time.perf_counter() - started == pytest.approx(2 * len(data) / 500_000, rel=0.25)
        assert link.bytes_down == 2 * len(data)


def test_cut_resets_connections_and_refuses_new_ones_until_it_is_restored() -> None:
    with echo_server() as port, Link("127.0.0.1", port) as link:
        with socket.create_connection(("127.0.0.1", link.port), SECONDS) as client:
            client.sendall(b"ping")
            assert receive(client, 4) == b"ping"
            link.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with pytest.raises(ConnectionError):
            there_and_back(link, b"ping")
        link.restore()
        there_and_back(link, b"ping")


def test_a_held_link_is_silent_and_loses_nothing() -> None:
    with echo_server() as port, Link("127.0.0.1", port) as link:
        with socket.create_connection(("127.0.0.1", link.port), SECONDS) as client:
            client.sendall(b"ping")
            assert receive(client, 4) == b"ping"
            link.hold()
            client.sendall(b"late")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
            link.restore()
            client.settimeout(SECONDS)
            assert receive(client, 4) == b"late"
        link.hold()
        with socket.create_connection(("127.0.0.1", link.port), SECONDS) as client:
            client.sendall(b"ping")
            link.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_server_that_is_not_there_resets_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Link("127.0.0.1", port) as link, pytest.raises(ConnectionError):
        there_and_back(link, b"ping")


def test_trouble_stalls_and_resets() -> None:
    with echo_server() as port:
        slowest = 0.0
        with (
            Link("127.0.0.1", port, trouble=Trouble(seed=1, every=0.02, stall=0.05)) as link,
            socket.create_connection(("127.0.0.1", link.port), SECONDS) as client,
        ):
            for _ in range(300):
                started = time.perf_counter()
                client.sendall(b"ping")
                assert receive(client, 4) == b"ping"
                slowest = max(slowest, time.perf_counter() - started)
        assert slowest > 0.05
        with (
            Link("127.0.0.1", port, trouble=Trouble(seed=1, every=0.05, resets=1.0)) as link,
            socket.create_connection(("127.0.0.1", link.port), SECONDS) as client,
            pytest.raises(ConnectionResetError),
        ):
            client.recv(1)


# machines ------------------------------------------------------------------------------------------------

SERVE = """
import http.server, sys
server = http.server.HTTPServer((sys.argv[1], 8000), http.server.BaseHTTPRequestHandler)
print("ready", flush=True)
server.serve_forever()
"""
REACH = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); print('reached')"


def serve(machine: Machine, address: str) -> subprocess.Popen[str]:
    process = machine.start(sys.executable, "-c", SERVE, address, stdout=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def reaches(machine: Machine, address: str, port: int = 8000) -> bool:
    return machine.run(sys.executable, "-c", REACH, address, str(port)).stdout == "reached\n"


def test_nodes_reach_the_server_and_nobody_elses_loopback() -> None:
    with machines(2) as network:
        first, second = network.nodes
        serve(network.server, "0.0.0.0")
        serve(second, "127.0.0.1")
        assert all(reaches(machine, network.server.address) for machine in (network.server, first, second))
        assert reaches(second, "127.0.0.1")
        assert not reaches(first, "127.0.0.1"), "another machine's loopback"
        assert not reaches(first, second.address), "a service on loopback, from outside"
        with socket.create_server(("127.0.0.1", 0)) as ours:
            assert not reaches(first, "127.0.0.1", ours.getsockname()[1]), "the loopback of the test itself"


def test_an_unplugged_machine_reaches_nobody_until_it_is_plugged_in() -> None:
    with machines(2) as network:
        first, second = network.nodes
        serve(network.server, "0.0.0.0")
        first.unplug()
        assert not reaches(first, network.server.address)
        assert reaches(second, network.server.address)
        first.plug()
        assert reaches(first, network.server.address)


def test_a_link_stands_on_a_machine() -> None:
    with machines(1) as network:
        (node,) = network.nodes
        serve(network.server, "0.0.0.0")
        with Link(network.server.address, 8000, namespace=node.namespace) as link:
            assert reaches(node, "127.0.0.1", link.port)
            assert link.connections == 1
            assert not reaches(network.server, "127.0.0.1", link.port)


def test_nothing_stays_of_a_network_whose_test_fails() -> None:
    started = []

    def fail() -> None:
        with machines(1) as network:
            started.append(serve(network.server, "0.0.0.0"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(Path("/run/netns").glob(f"{PREFIX}-{os.getpid()}-*"))
    assert started[0].wait(SECONDS) == -signal.SIGKILL
