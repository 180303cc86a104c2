"""Messages between the server's grid and a node's connection, over the real SuperLink, when some of the way fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.node_pb2 import Node

from fednnunet.config.node_file import read_node_file
from fednnunet.deployment.node import message_transfer
from fednnunet.deployment.node.connection import NodeConnection
from fednnunet.deployment.node.message_transfer import receive_message, send_reply
from fednnunet.deployment.server import superlink_grid
from fednnunet.deployment.server.object_files import FOLDER
from fednnunet.deployment.server.superlink_grid import SuperLinkGrid
from fednnunet.exchange.flower_internals import act_as
from fednnunet.exchange.packing import pack, unpack
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.server.node_client import is_unreachable
from tests.support.deployed_federation import Federation, waiting_server


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server, and the key of a node; no node runs."""
    with waiting_server(tmp_path_factory.mktemp("federation"), "Oslo") as federation:
        yield federation


@pytest.fixture
def connection(federation: Federation) -> Iterator[NodeConnection]:
    """Joined, and asking for nothing by itself."""
    connection = NodeConnection(read_node_file(federation.write_node_file("Oslo")), {}, lambda _: None)
    asked = ActivateNodeRequest(public_key=connection.calls.public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    connection.node = Node(node_id=connection.calls.client.ActivateNode(asked).node_id)
    yield connection
    connection.leave()


@pytest.fixture
def grid(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> Iterator[SuperLinkGrid]:
    monkeypatch.setattr(superlink_grid, "LOST_CHECK_SECONDS", 0.0)
    grid = SuperLinkGrid(federation.state, lambda _: None)
    yield grid
    grid.close()


def as_server(grid: SuperLinkGrid) -> None:
    """Messages that are made from now on are the server's: Flower keeps it in the process."""
    act_as(SUPERLINK_NODE_ID, grid.run_id)


def as_node(connection: NodeConnection, grid: SuperLinkGrid) -> None:
    """From now on they are the node's."""
    act_as(connection.node.node_id, grid.run_id)


ARRAYS = {"weight": np.arange(600_000, dtype=np.float32).reshape(600, 1000), "bias": np.ones(3, dtype=np.float16)}


def send(grid: SuperLinkGrid, connection: NodeConnection) -> str:
    as_server(grid)
    content = RecordDict({"config": ConfigRecord({"body": "{}"}), "arrays": to_array_record(ARRAYS)})
    (id_,) = grid.push_messages([Message(content, connection.node.node_id, "train")])
    return id_


def receive(connection: NodeConnection) -> Message | None:
    """The next message, if one is there."""
    asked = connection.calls.client.PullMessages(PullMessagesRequest(node=connection.node))
    if not asked.messages_list:
        return None
    metadata = asked.messages_list[0].metadata
    return receive_message(
        connection.calls, connection.node, metadata.run_id, metadata.message_id, asked.message_object_trees[0]
    )


def reply_to(message: Message, connection: NodeConnection, grid: SuperLinkGrid) -> None:
    """What it held goes back."""
    as_node(connection, grid)
    reply = Message(pack(unpack(message.content, "the server")), reply_to=message)
    send_reply(connection.calls, connection.node, reply, 0.0)


def check_reply(replies: list[Message], id_: str, connection: NodeConnection) -> None:
    (reply,) = replies
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (id_, connection.node.node_id)
    arrays = from_array_record(reply.content.array_records["arrays"], "the node")
    assert all(np.array_equal(arrays[name], array) for name, array in ARRAYS.items())


def test_arrays_make_the_round_trip_unchanged(grid: SuperLinkGrid, connection: NodeConnection) -> None:
    id_ = send(grid, connection)
    message = receive(connection)
    assert message is not None
    reply_to(message, connection, grid)
    check_reply(grid.pull_messages([id_]), id_, connection)
    assert grid.pull_messages([id_]) == []


def test_a_message_that_its_node_has_lost_is_resent(grid: SuperLinkGrid, connection: NodeConnection) -> None:
    id_ = send(grid, connection)
    assert receive(connection) is not None  # and the node is killed
    for _ in range(2):
        assert grid.pull_messages([id_]) == []
        assert receive(connection) is None
    assert grid.pull_messages([id_]) == []
    message = receive(connection)
    assert message is not None
    reply_to(message, connection, grid)
    check_reply(grid.pull_messages([id_]), id_, connection)


def fetch_head_and_die(connection: NodeConnection) -> None:
    """What a node does that is killed before it has the rest of a message."""
    assert connection.calls.client.PullMessages(PullMessagesRequest(node=connection.node)).messages_list


def parts_at(federation: Federation) -> set[str]:
    """Large parts of messages that the server has."""
    return {path.name for path in (federation.state / FOLDER).iterdir()}


def test_the_parts_of_a_message_go_with_a_node_that_dies_while_it_fetches_them(
    federation: Federation, grid: SuperLinkGrid, connection: NodeConnection
) -> None:
    id_ = send(grid, connection)
    fetch_head_and_die(connection)
    assert parts_at(federation)
    connection.leave()  # or it is silent for a while
    (reply,) = grid.pull_messages([id_])
    assert is_unreachable(reply)
    assert not parts_at(federation)


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_the_parts_of_a_lost_message_are_there_until_it_is_fetched_or_nobody_waits_for_its_reply(
    federation: Federation, grid: SuperLinkGrid, connection: NodeConnection, is_abandoned: bool
) -> None:
    id_ = send(grid, connection)
    parts = parts_at(federation)
    fetch_head_and_die(connection)
    if is_abandoned:
        grid.abandon([id_])
    while not (replies := grid.pull_messages([id_])) and (message := receive(connection)) is None:
        assert parts_at(federation) == parts
    assert not parts_at(federation)
    if not is_abandoned:
        assert message is not None
        reply_to(message, connection, grid)
        replies = grid.pull_messages([id_])
        check_reply(replies, id_, connection)
    assert is_unreachable(replies[0]) == is_abandoned


def test_a_message_that_a_node_works_on_is_not_resent(grid: SuperLinkGrid, connection: NodeConnection) -> None:
    for _ in range(5):
        assert receive(connection) is None
    id_ = send(grid, connection)
    message = receive(connection)
    assert message is not None
    for _ in range(5):
        assert grid.pull_messages([id_]) == []
    reply_to(message, connection, grid)
    check_reply(grid.pull_messages([id_]), id_, connection)
    assert receive(connection) is None


def test_a_reply_that_waits_to_be_pulled_is_not_lost(grid: SuperLinkGrid, connection: NodeConnection) -> None:
    """The server takes replies in order: those that are early wait, while their nodes ask for more."""
    first, second = send(grid, connection), send(grid, connection)
    for _ in range(2):
        message = receive(connection)
        assert message is not None
        reply_to(message, connection, grid)
    for _ in range(5):
        assert receive(connection) is None
    check_reply(grid.pull_messages([first]), first, connection)
    assert receive(connection) is None, "nothing was sent again"
    check_reply(grid.pull_messages([second]), second, connection)


def test_a_lost_message_whose_reply_nobody_waits_for_leaves_its_node_free(
    grid: SuperLinkGrid, connection: NodeConnection
) -> None:
    id_ = send(grid, connection)
    grid.abandon([id_])
    assert receive(connection) is not None  # and the node is killed
    for _ in range(3):
        assert receive(connection) is None
    (reply,) = grid.pull_messages([id_])
    assert is_unreachable(reply)
    assert reply.metadata.src_node_id == connection.node.node_id
    assert receive(connection) is None


def test_a_reply_arrives_whose_acknowledgement_was_lost(
    grid: SuperLinkGrid, connection: NodeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes note of the reply, and waits for what is in it; the node does not know that."""
    id_ = send(grid, connection)
    message = receive(connection)
    assert message is not None
    replies: list[Message] = []
    pulling = threading.Thread(target=lambda: replies.extend(grid.pull_messages([id_])))
    push = connection.calls.client.PushMessages

    def push_and_lose_the_answer_once(request: PushMessagesRequest) -> PushMessagesResponse:
        answer = push(request)
        if not pulling.ident:
            pulling.start()
            raise httpx.ReadError("the connection was cut")
        return answer

    monkeypatch.setattr(connection.calls.client, "PushMessages", push_and_lose_the_answer_once)
    reply_to(message, connection, grid)
    pulling.join(60)
    check_reply(replies, id_, connection)


def test_a_reply_that_broke_off_is_asked_for_again(
    grid: SuperLinkGrid, connection: NodeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies after the reply's head; Flower would wait for the rest for three minutes."""
    id_ = send(grid, connection)
    message = receive(connection)
    assert message is not None
    replies: list[Message] = []
    pulling = threading.Thread(target=lambda: replies.extend(grid.pull_messages([id_])))

    def die(*_: object) -> None:
        pulling.start()
        raise ConnectionAbortedError

    with monkeypatch.context() as dying:
        dying.setattr(message_transfer, "push_objects", die)
        with pytest.raises(ConnectionAbortedError):
            reply_to(message, connection, grid)
    assert receive(connection) is None, "its successor asks for a message"
    pulling.join(30)
    assert not pulling.is_alive()
    as_server(grid)
    while (message := receive(connection)) is None:
        assert grid.pull_messages([id_]) == replies == []
    reply_to(message, connection, grid)
    check_reply(grid.pull_messages([id_]), id_, connection)


def test_a_state_folder_without_a_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="is not a server's state folder; start the server"):
        SuperLinkGrid(tmp_path, lambda _: None)
