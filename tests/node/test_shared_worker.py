from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fednnunet.node.launcher import socket_folder, worker_address
from fednnunet.node.shared_worker import SharedWorker


class Held:
    """What a worker process holds of a node: so many bytes, and how often they were counted."""

    def __init__(self, size: int) -> None:
        self.size, self.counted, self.closed = size, 0, False
        self.stages = SimpleNamespace(trainer=None, cap_memory=lambda: None)

    @property
    def num_bytes(self) -> int:
        self.counted += 1
        return self.size

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own process stays as it is."""
    state = SimpleNamespace(keep=lambda: None, restore=lambda: None)
    monkeypatch.setattr("fednnunet.node.shared_worker.ProcessState", lambda *_: state)


@contextlib.contextmanager
def worker_with(folder: Path, held: list[Held], cache_bytes: int) -> Iterator[tuple[SharedWorker, list[Any]]]:
    """A worker whose nodes are at work, and its nodes."""
    nodes = {number: SimpleNamespace(name=f"N{number}", folder=folder, threads=1) for number in range(len(held))}
    with socket_folder(folder) as sockets:
        addresses = {number: worker_address(sockets, str(number)) for number in nodes}
        plan: Any = SimpleNamespace(nodes=nodes, cache_bytes=cache_bytes, parks=False)
        worker = SharedWorker(plan, addresses)
        for node, what in zip(worker._nodes, held, strict=True):
            node._worker = what  # type: ignore[assignment]
        yield worker, worker._nodes
        for node in worker._nodes:
            node.channel.close()


@pytest.mark.usefixtures("process")
def test_what_a_node_holds_is_counted_at_the_end_of_its_turn_alone(tmp_path: Path) -> None:
    held = [Held(10) for _ in range(6)]
    with worker_with(tmp_path, held, cache_bytes=1000) as (worker, nodes):
        for _ in range(3):
            for node in nodes:
                worker._switch_to(node)
    assert [one.counted for one in held] == [3, 3, 3, 3, 3, 2]  # the last one's third turn is not over


@pytest.mark.usefixtures("process")
def test_nodes_beyond_the_memory_of_a_worker_are_dropped_the_last_one_first(tmp_path: Path) -> None:
    held = [Held(10), Held(20), Held(30), Held(5)]
    dropped = []
    with worker_with(tmp_path, held, cache_bytes=32) as (worker, nodes):
        for node in nodes:
            worker._switch_to(node)
            dropped.append([one.closed for one in held])
    assert dropped == [[False] * 4, [False] * 4, [False] * 4, [False, False, True, False]]
    assert [node.num_bytes for node in nodes] == [10, 20, 0, 0]


@pytest.mark.usefixtures("process")
def test_of_nodes_with_requests_the_first_is_served_first(tmp_path: Path) -> None:
    with worker_with(tmp_path, [Held(10) for _ in range(4)], cache_bytes=1000) as (worker, nodes):
        for number in (3, 1):
            with socket.socket(socket.AF_UNIX) as relay:  # it goes away without a request
                relay.connect(nodes[number].channel._listener.address)
        assert worker._ready() == [nodes[1], nodes[3]]
        assert nodes[1].channel.receive() is None
        assert worker._ready() == [nodes[3]]
