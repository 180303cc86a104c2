"""The local grid keeps the contract of Flower's grids."""

from __future__ import annotations

import threading

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.node_client import NodeClient

app = ClientApp()
release = threading.Event()
running = threading.Semaphore(0)


@app.query("name")
def tell_name(message: Message, context: Context) -> Message:
    return Message(RecordDict({"config": ConfigRecord({"name": str(context.node_config["name"])})}), reply_to=message)


@app.train()
def wait(message: Message, context: Context) -> Message:
    running.release()
    release.wait(20)
    return Message(RecordDict({"metrics": MetricRecord({"node": context.node_id})}), reply_to=message)


@app.evaluate()
def fail(message: Message, context: Context) -> Message:
    raise FileNotFoundError("checkpoint")


@pytest.fixture
def grid() -> LocalGrid:
    return LocalGrid(app, {1: {"name": "A"}, 2: {"name": "B"}, 3: {"name": "C"}}, parallel=2)


def to_all(grid: Grid, message_type: str) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type=message_type) for node in grid.get_node_ids()]


def test_server_app_gets_a_reply_from_every_node(grid: LocalGrid) -> None:
    server = ServerApp()
    names: dict[int, object] = {}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        for reply in grid.send_and_receive(to_all(grid, "query.name")):
            names[reply.metadata.src_node_id] = reply.content.config_records["config"]["name"]

    grid.run_server(server)
    assert names == {1: "A", 2: "B", 3: "C"}


def test_exception_in_the_client_app_is_an_error_reply(grid: LocalGrid) -> None:
    for reply in grid.send_and_receive(to_all(grid, "evaluate")):
        assert reply.has_error()
        assert reply.error.reason == "FileNotFoundError: checkpoint"


def test_no_more_nodes_than_allowed_work_at_once(grid: LocalGrid) -> None:
    release.clear()
    ids = list(grid.push_messages(to_all(grid, "train")))
    assert running.acquire(timeout=10)
    assert running.acquire(timeout=10)
    assert not running.acquire(timeout=0.2)
    release.set()
    assert running.acquire(timeout=10)
    for message_id in ids:
        grid.wait_for_reply([message_id], timeout=10)
    assert sorted(reply.metadata.src_node_id for reply in grid.pull_messages(ids)) == [1, 2, 3]
    assert list(grid.pull_messages(ids)) == []


def test_a_worker_gets_the_messages_of_its_nodes_one_at_a_time_and_in_order() -> None:
    release.clear()
    order: list[int] = []
    grid = LocalGrid(
        lambda message, context: order.append(context.node_id) or wait(message, context),  # type: ignore[arg-type, func-returns-value]
        {node: {} for node in (1, 2, 3, 4)},
        parallel=4,
        workers=[{1, 3}, {2, 4}],
    )
    ids = list(grid.push_messages(to_all(grid, "train")))
    assert running.acquire(timeout=10)
    assert running.acquire(timeout=10)
    assert not running.acquire(timeout=0.2)
    assert sorted(order) == [1, 2]
    release.set()
    for message_id in ids:
        grid.wait_for_reply([message_id], timeout=10)
    assert order.index(1) < order.index(3)
    assert order.index(2) < order.index(4)
    assert running.acquire(timeout=10)
    assert running.acquire(timeout=10)


def test_workers_run_ahead_of_the_oldest_unread_reply_by_two_messages_each() -> None:
    grid = LocalGrid(app, {node: {"name": str(node)} for node in range(8)}, parallel=1, workers=[range(8)])
    ids = list(grid.push_messages(to_all(grid, "query.name")))
    grid.wait_for_reply([ids[2]], timeout=0.2)
    assert set(grid._replies) == set(ids[:2]), "two replies are held"
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids[1:2])] == [1]
    grid.wait_for_reply([ids[2]], timeout=0.2)
    assert set(grid._replies) == {ids[0]}, "the oldest was not read"
    grid.abandon(ids[:1])
    grid.wait_for_reply([ids[3]], timeout=10)
    assert set(ids[2:4]) <= set(grid._replies), "nobody waits for it any more"


def test_replies_that_come_too_late_are_absent(grid: LocalGrid) -> None:
    release.clear()
    assert list(grid.send_and_receive(to_all(grid, "train"), timeout=0.2)) == []
    release.set()


def test_replies_are_streamed_as_they_come(grid: LocalGrid) -> None:
    release.clear()
    first, *rest = to_all(grid, "train")
    quick = Message(RecordDict(), dst_node_id=2, message_type="query.name")
    stream = NodeClient(grid).stream([first, quick], timeout=20)
    assert next(stream).metadata.src_node_id == 2
    release.set()
    assert next(stream).metadata.src_node_id == 1
    assert list(stream) == []
    assert len(rest) == 2
