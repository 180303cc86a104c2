"""The channel between relay and worker: real sockets, peers that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednnunet.exchange import channel as channel_module
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.channel import (
    Request,
    WorkerChannel,
    WorkerFailure,
    WorkerUnreachable,
    call_worker,
)
from fednnunet.exchange.messages import Failure, Kind

KEY = b"k" * 32


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerChannel]:
    monkeypatch.chdir(tmp_path)  # AF_UNIX paths are short
    monkeypatch.setattr("fednnunet.exchange.channel.HANDSHAKE_SECONDS", 1.5)
    channel = WorkerChannel("s", KEY)
    yield channel
    channel.close()


def serve(channel: WorkerChannel, answer: Callable[[Request], object], requests: int = 1) -> threading.Thread:
    """Answer the next ``requests`` valid requests in a thread; refused peers don't count."""

    def work() -> None:
        left = requests
        while left:
            try:
                request = channel.receive(timeout=0.5)
            except (ConnectionError, ValueError):  # the test is over
                return
            if request is not None:
                answer(request)
                left -= 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def echo(request: Request) -> None:
    shared = SharedArrays.allocate({name: (a.shape, a.dtype) for name, a in request.arrays.items()})
    for name, view in shared.views().items():
        view[...] = request.arrays[name] * 2
    request.reply(request.body.decode(), shared)


def test_request_and_reply_carry_body_and_arrays(channel: WorkerChannel) -> None:
    thread = serve(channel, echo)
    weights = np.random.default_rng(0).standard_normal((50, 70)).astype(np.float32)
    body, shared = call_worker("s", KEY, Kind.TRAIN, '{"a": 1}', {"w": weights, "scalar": np.array(3)})
    assert json.loads(body) == {"a": 1}
    assert shared is not None
    assert np.array_equal(shared.views()["w"], weights * 2)
    assert shared.views()["scalar"] == 6
    thread.join(5)


def test_failure_of_the_worker_reaches_the_relay(channel: WorkerChannel) -> None:
    serve(channel, lambda request: request.fail(Failure(reason="no disk", error="data")))
    with pytest.raises(WorkerFailure, match="no disk"):
        call_worker("s", KEY, Kind.PLAN, "{}")


def test_absent_worker_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(WorkerUnreachable, match="cannot be reached"):
        call_worker(tmp_path / "nobody", KEY, Kind.PLAN, "{}")


def test_worker_that_dies_before_its_reply_is_reported(channel: WorkerChannel) -> None:
    serve(channel, lambda request: request.close())
    with pytest.raises(WorkerUnreachable):
        call_worker("s", KEY, Kind.PLAN, "{}")


def test_wrong_key_gets_no_connection(channel: WorkerChannel) -> None:
    serve(channel, echo)
    with pytest.raises(WorkerUnreachable):
        call_worker("s", b"wrong" * 8, Kind.PLAN, "{}")
    assert call_worker("s", KEY, Kind.PLAN, "{}")[0] == b"{}"


def _raw(data: bytes = b"") -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect("s")
    peer.sendall(data)
    return peer


def _authenticated(*parts: bytes) -> None:
    # The worker may hang up before everything is sent.
    with contextlib.suppress(ConnectionError), Client("s", family="AF_UNIX", authkey=KEY) as peer:
        for part in parts:
            peer.send_bytes(part)


@pytest.mark.parametrize(
    "misbehave",
    [
        lambda: _raw().close(),
        lambda: _raw(b"GET / HTTP/1.1\r\n\r\n").close(),
        lambda: _raw(b"\xff" * 64).close(),
        lambda: _authenticated(b"not json", b"{}"),
        lambda: _authenticated(b"[]", b"{}"),
        lambda: _authenticated(b'{"kind": "rm -rf"}', b"{}"),
        lambda: _authenticated(b'{"kind": "train", "arrays": true}', b"{}", b"{}"),
        lambda: _authenticated(b'{"kind": "train"}'),
        lambda: _authenticated(b"x" * 5000),
    ],
    ids=["leaves", "http", "garbage", "head", "list", "kind", "layout", "half", "long"],
)
def test_worker_survives_peers_that_misbehave(channel: WorkerChannel, misbehave: Callable[[], None]) -> None:
    serve(channel, echo)
    misbehave()
    assert call_worker("s", KEY, Kind.PLAN, '{"still": "there"}')[0] == b'{"still": "there"}'


def test_silent_peer_does_not_block_the_worker(channel: WorkerChannel) -> None:
    serve(channel, echo)
    silent = _raw()
    assert call_worker("s", KEY, Kind.PLAN, "{}")[0] == b"{}"
    silent.close()


def test_relay_that_dies_before_the_reply_is_noticed_and_can_ask_again(channel: WorkerChannel) -> None:
    delivered: list[object] = []
    go = threading.Event()

    def late(request: Request) -> None:
        go.wait(10)
        shared = SharedArrays.allocate({"w": ((1_000_000,), np.dtype("float32"))})
        delivered.append(request.reply("{}" + " " * 2_000_000, shared))

    serve(channel, late, requests=2)
    with Client("s", family="AF_UNIX", authkey=KEY) as peer:
        peer.send_bytes(b'{"kind": "train", "arrays": false}')
        peer.send_bytes(b"{}")
    go.set()
    body, shared = call_worker("s", KEY, Kind.TRAIN, "{}")
    assert body.strip() == b"{}"
    assert shared is not None
    assert delivered[0] is False


def test_memory_of_a_reply_is_not_written_again_while_the_reply_is_held(channel: WorkerChannel) -> None:
    sent: list[SharedArrays] = []
    spec = {"w": ((1000,), np.dtype("float32"))}

    def count(request: Request) -> None:
        shared = next((known for known in sent if known.is_free_for(spec)), None) or SharedArrays.allocate(spec)
        sent.append(shared)
        shared.views()["w"][...] = len(sent)
        request.reply("{}", shared)

    serve(channel, count, requests=3)
    first = call_worker("s", KEY, Kind.TRAIN, "{}")[1]
    second = call_worker("s", KEY, Kind.TRAIN, "{}")[1]
    assert first is not None
    assert second is not None
    assert (first.views()["w"][0], second.views()["w"][0]) == (1, 2)
    del first
    third = call_worker("s", KEY, Kind.TRAIN, "{}")[1]
    assert third is not None
    assert (second.views()["w"][0], third.views()["w"][0]) == (2, 3)
    assert sent[2] is sent[0], "the first is free again"


def test_requests_that_lie_in_shared_memory_are_lent_and_given_back(channel: WorkerChannel) -> None:
    seen = []

    def read(request: Request) -> None:
        seen.append((float(request.arrays["w"][1]), averages.memory.is_in_use))
        request.reply("{}")

    averages = SharedArrays.allocate({"w": ((3,), np.dtype("float32"))})
    averages.views()["w"][...] = 5
    serve(channel, read).join(0)
    call_worker("s", KEY, Kind.TRAIN, "{}", averages.views())
    assert seen == [(5.0, True)]
    deadline = time.monotonic() + 10
    while averages.memory.is_in_use:  # the other thread may not have closed its descriptor yet
        assert time.monotonic() < deadline, "not given back"
        time.sleep(0.01)


def test_no_descriptor_leaks_over_many_requests(channel: WorkerChannel) -> None:
    serve(channel, echo, requests=60)

    def call() -> None:
        _, shared = call_worker("s", KEY, Kind.TRAIN, "{}", {"w": np.ones(1000, dtype=np.float32)})
        assert shared is not None

    for _ in range(10):
        call()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(49):
        call()
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before + 2:  # the other thread may not have closed its last ones yet
        assert time.monotonic() < deadline, "descriptors are left open"
        time.sleep(0.05)


def test_a_worker_of_another_version_is_refused(channel: WorkerChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was started before an upgrade, its connection after it."""
    answered = threading.Event()
    send = channel_module._send

    def send_as_another_version(connection: Connection, head: dict[str, Any], *rest: Any) -> None:
        send(connection, head | {"version": "0.0.1"} if "version" in head else head, *rest)

    def answer(request: Request) -> None:
        echo(request)
        answered.set()

    monkeypatch.setattr(channel_module, "_send", send_as_another_version)
    serve(channel, answer)
    with pytest.raises(WorkerFailure, match=r"the node's worker runs fednnunet 0\.0\.1, its connection"):
        call_worker("s", KEY, Kind.TRAIN, "{}", {"w": np.ones(3, dtype=np.float32)})
    assert answered.wait(5)
