"""Nodes that come back are waited for, or done without: over a local grid whose nodes fail as they are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fednnunet.exchange.error_codes import ERROR_CODES
from fednnunet.exchange.flower_internals import Run, set_message_id
from fednnunet.server import node_client
from fednnunet.server.local_grid import LocalGrid, NodeGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.run_observer import RunObserver

NODES = {1: "Oslo", 2: "Porto", 3: "Lund"}


class Grid(LocalGrid):
    """Nodes can be away; their keys stand for names; ``faults`` says how often a node fails before it replies."""

    def __init__(self) -> None:
        self.away: set[int] = set()
        self.faults: dict[int, int] = {}
        self.asked: list[int] = []
        self.free = threading.Event()
        self.free.set()
        app = ClientApp()
        app.train()(self.reply)
        super().__init__(app, {node: {} for node in NODES}, parallel=3)

    def reply(self, message: Message, context: Context) -> Message:
        self.asked.append(context.node_id)
        if context.node_id == 2:
            self.free.wait(20)
        if self.faults.get(context.node_id, 0) > 0:
            self.faults[context.node_id] -= 1
            return Message(Error(ERROR_CODES["unavailable"], "its disk is full"), reply_to=message)
        return Message(RecordDict({"config": ConfigRecord({"node": context.node_id})}), reply_to=message)

    def get_node_ids(self) -> list[int]:
        return [node for node in NODES if node not in self.away]

    def names(self) -> dict[int, str]:
        return dict(NODES)


class Observer(RunObserver):
    """Keeps what it is told, and may react to a wait."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.waited_for: list[list[str]] = []
        self.react: Callable[[], None] = lambda: None

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_waiting(self, nodes: Collection[str]) -> None:
        self.waited_for.append(sorted(nodes))
        if nodes:
            self.react()


@pytest.fixture
def grid() -> Iterator[Grid]:
    grid = Grid()
    yield grid
    grid.free.set()
    grid.close()


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def client(grid: Grid, observer: Observer, monkeypatch: pytest.MonkeyPatch) -> NodeClient:
    """A client of nodes that come back."""
    monkeypatch.setattr(node_client, "RETRY_PAUSES_S", (0.0, 0.05))
    return NodeClient(grid, observer, wait_for_nodes=True)


def requests(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


def repliers(replies: Iterator[Message]) -> list[int]:
    return sorted(int(reply.metadata.src_node_id) for reply in replies if reply.has_content())


def test_a_node_that_cannot_reply_now_is_asked_again(grid: Grid, observer: Observer, client: NodeClient) -> None:
    grid.faults = {3: 3}
    assert repliers(client.stream(requests(1, 3), None)) == [1, 3]
    assert grid.asked.count(3) == 4
    assert observer.messages == ["node Lund: its disk is full; the federation waits for it"]
    assert observer.waited_for[-1] == []


def test_where_nodes_do_not_come_back_it_is_a_failure(grid: Grid) -> None:
    grid.faults = {3: 1}
    assert repliers(NodeClient(grid).stream(requests(1, 3), None)) == [1]
    assert grid.asked.count(3) == 1


def test_a_round_with_enough_nodes_goes_on_without_it(grid: Grid, observer: Observer, client: NodeClient) -> None:
    grid.faults = {3: 1}
    replies = list(client.stream(requests(1, 3), None, min_replies=1))
    assert sorted(reply.has_error() for reply in replies) == [False, True]
    assert grid.asked.count(3) == 1
    assert observer.waited_for == []


def test_a_node_that_is_away_is_waited_for_before_it_is_asked(
    grid: Grid, observer: Observer, client: NodeClient
) -> None:
    grid.away = {3}
    observer.react = grid.away.clear
    assert client.wait_until_connected([1, 3], 2) == [1, 3]
    assert observer.messages == ["node Lund: not connected; the federation waits for it"]


def test_who_is_away_and_who_is_back_is_told_once(grid: Grid, observer: Observer, client: NodeClient) -> None:
    grid.away = {3}
    for _ in range(3):
        assert client.wait_until_connected([1, 2, 3], 2) == [1, 2]
    grid.away.clear()
    for _ in range(2):
        assert client.wait_until_connected([1, 2, 3], 2) == [1, 2, 3]
    assert observer.messages == ["node Lund is away; the federation goes on without it", "node Lund is back"]


def test_who_is_late_is_not_asked_before_it_is_free(grid: Grid, client: NodeClient) -> None:
    grid.free.clear()
    assert repliers(client.stream(requests(1, 2), timeout=0.2, min_replies=1)) == [1]
    assert client.wait_until_connected([1, 2], 1) == [1]
    grid.free.set()
    while client.wait_until_connected([1, 2], 1) != [1, 2]:
        pass
    assert repliers(client.stream(requests(1, 2), timeout=20, min_replies=1)) == [1, 2], (
        "and the late reply is not read"
    )


def test_a_deadline_without_enough_replies_is_not_kept(grid: Grid, observer: Observer, client: NodeClient) -> None:
    grid.free.clear()
    observer.react = grid.free.set
    assert repliers(client.stream(requests(1, 2), timeout=0.1, min_replies=2)) == [1, 2]
    assert observer.messages == ["node Porto: has not replied in time; the federation waits for it"]


def test_only_nodes_of_the_run_are_asked(client: NodeClient) -> None:
    assert client.candidates(["Oslo", "Lund"]) == [1, 3]
    assert client.candidates(None) == [1, 2, 3]


class HoldingGrid(NodeGrid):
    """Keeps replies until they are pulled, as a SuperLink does; one node is connected and does not reply."""

    def __init__(self, slow: int) -> None:
        self.slow = slow
        self.replies: dict[str, Message] = {}
        self.pulls: list[int] = []

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(NODES)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = {f"of {message.metadata.dst_node_id}": message for message in messages}
        for id_, message in sent.items():
            set_message_id(message, id_)
            if message.metadata.dst_node_id != self.slow:
                self.replies[id_] = Message(RecordDict(), reply_to=message)
                self.replies[id_].metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        return list(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        there = [self.replies.pop(id_) for id_ in message_ids if id_ in self.replies]
        self.pulls.append(len(there))
        return there


@pytest.mark.parametrize("wait_for_nodes", [True, False])
@pytest.mark.parametrize("slow", NODES)
@pytest.mark.usefixtures("grid")
def test_a_slow_node_does_not_keep_the_others_from_closing_the_round(slow: int, wait_for_nodes: bool) -> None:
    holding = HoldingGrid(slow)
    began = time.monotonic()
    client = NodeClient(holding, wait_for_nodes=wait_for_nodes)
    replied = repliers(client.stream(requests(*NODES), timeout=0.5, min_replies=2))
    assert replied == [node for node in NODES if node != slow]
    assert 0.5 <= time.monotonic() - began < 5
    assert max(holding.pulls) == 1, "one reply is in memory at a time"


@pytest.mark.usefixtures("grid")
def test_replies_that_come_until_the_deadline_are_in() -> None:
    holding = HoldingGrid(slow=1)
    client = NodeClient(holding)
    assert repliers(client.stream(requests(*NODES), timeout=0.0)) == [2, 3]


@pytest.mark.usefixtures("grid")
def test_replies_that_are_there_are_read_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []
    monkeypatch.setattr(node_client, "wait_for_next_poll", lambda *_: pauses.append(1))
    holding = HoldingGrid(slow=0)
    holding.get_node_ids = pytest.fail  # type: ignore[method-assign]  # a request more at a SuperLink, for nothing
    assert repliers(NodeClient(holding).stream(requests(*NODES), timeout=None)) == list(NODES)
    assert holding.pulls == [1, 1, 1]
    assert pauses == []
