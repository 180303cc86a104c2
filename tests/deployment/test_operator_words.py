"""What an operator reads of nodes and of the server: names and our words, not Flower's; gone when it is over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Error, Message, RecordDict

from fednnunet.deployment.http_errors import error_text
from fednnunet.deployment.server import superlink_grid
from fednnunet.deployment.server.admission import Admission, Sender
from fednnunet.deployment.server.flower_internals import ConfirmMessageReceivedRequest
from fednnunet.deployment.server.object_files import ObjectFiles
from fednnunet.deployment.server.run_status import STATUS_FILE, RunStatus
from fednnunet.deployment.server.superlink_grid import SuperLinkGrid
from fednnunet.exchange.flower_internals import ErrorCode, act_as, set_message_id
from fednnunet.server.node_client import UNREACHABLE, NodeClient
from fednnunet.server.run_observer import RunObserver

pytestmark = pytest.mark.unit

OSLO = 15648721330712345678


class Connection:
    """A run at a server at which every message comes back as an error of Flower's."""

    def __init__(self, state: Path, notify: Any) -> None:
        node = SimpleNamespace(node_id=OSLO, name="Oslo", public_key=b"key")
        self.operator = SimpleNamespace(nodes=lambda: [node], polls=dict)
        self.grid = SimpleNamespace(get_node_ids=lambda: [OSLO])
        self.client, self.run_id = SimpleNamespace(ConfirmMessageReceived=self.discard), 1
        self.code, self.sent = ErrorCode.NODE_UNAVAILABLE, 0
        self.discarded: list[str] = []

    def discard(self, request: ConfirmMessageReceivedRequest) -> None:
        self.discarded.append(request.message_object_id)

    def call(self, function: Any) -> Any:
        return function()

    def push_request(self, client: object, files: ObjectFiles, run_id: int, message: Message) -> str:
        self.sent += 1
        return str(self.sent)

    def pull_replies(
        self, client: object, files: ObjectFiles, run_id: int, ids: Iterable[str]
    ) -> Iterator[tuple[str, Message]]:
        for id_ in ids:
            message = Message(RecordDict(), OSLO, "train")
            set_message_id(message, id_)
            text = "Error: Node Unavailable - The destination node is currently unavailable. It exceeds its time."
            yield id_, Message(Error(self.code, text), reply_to=message)


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Connection:
    connection = Connection(tmp_path, print)
    monkeypatch.setattr(superlink_grid, "RunConnection", lambda *_: connection)
    monkeypatch.setattr(superlink_grid, "push_request", connection.push_request)
    monkeypatch.setattr(superlink_grid, "pull_replies", connection.pull_replies)
    act_as(node_id=0, run_id=1)
    return connection


def test_errors_of_flower_are_told_by_name_in_our_words(connection: Connection, tmp_path: Path) -> None:
    grid, lines = SuperLinkGrid(tmp_path, print), []

    class Observer(RunObserver):
        def on_message(self, text: str) -> None:
            lines.append(text)
            raise KeyboardInterrupt  # it would wait for the node

    client = NodeClient(grid, Observer(), wait_for_nodes=True)
    with pytest.raises(KeyboardInterrupt):
        list(client.stream([Message(RecordDict(), OSLO, "train")], timeout=None))
    assert lines == ["node Oslo: not connected; the federation waits for it"]


def test_a_reply_that_broke_off_is_no_error_of_a_node_that_is_connected(connection: Connection, tmp_path: Path) -> None:
    grid = SuperLinkGrid(tmp_path, print)
    connection.code = ErrorCode.MESSAGE_UNAVAILABLE
    (id_,) = grid.push_messages([Message(RecordDict(), OSLO, "train")])
    assert grid.pull_messages([id_]) == []
    assert (connection.sent, connection.discarded) == (2, ["1"]), "it is asked again, and the first request is gone"
    connection.grid.get_node_ids = list
    (reply,) = grid.pull_messages([id_])
    assert (reply.error.code in UNREACHABLE, reply.error.reason) == (True, "its reply broke off")


def test_an_answer_of_the_server_has_one_full_stop_at_most() -> None:
    answer = httpx.Response(403, json={"code": 7, "message": "Run status is not allowed.", "public_details": None})
    assert f"{error_text(answer)}; waiting for it" == "403: Run status is not allowed; waiting for it"


def test_nodes_without_keys_have_names(tmp_path: Path) -> None:
    names: dict[str, str] = {}
    admission = Admission(lambda _: "", print, names.__setitem__)
    admission.join(Sender("key", "Oslo", "here", "127.0.0.1"))
    admission.join(Sender("other", "\x1b[31m", "there", "127.0.0.1"))
    assert names == {"key": "Oslo"}


# server status -----------------------------------------------------------------------------------------


@pytest.fixture
def status(tmp_path: Path) -> RunStatus:
    return RunStatus(tmp_path, tmp_path / "run", strategy="asym", dataset="mine")


def message_of(folder: Path) -> str:
    return str(json.loads((folder / STATUS_FILE).read_text())["message"])


def test_a_message_of_a_node_that_is_waited_for_is_gone_when_it_is_back(status: RunStatus, tmp_path: Path) -> None:
    status.on_message("node Oslo: not connected; the federation waits for it")
    status.on_waiting(["Oslo"])
    assert message_of(tmp_path).startswith("node Oslo")
    status.on_waiting([])
    assert message_of(tmp_path) == ""


def test_a_message_is_shown_for_the_round_that_it_is_of_and_the_next_one(status: RunStatus, tmp_path: Path) -> None:
    status.on_message("node Oslo: sent NaN; the federation goes on without it")
    status.on_round_end(1, [])
    assert message_of(tmp_path)
    status.on_round_end(2, [])
    assert message_of(tmp_path) == ""
    status.on_message("the disk is full")
    status.on_stage("evaluate")
    assert message_of(tmp_path) == ""


def test_a_run_that_has_stopped_says_why_in_the_words_of_the_error(status: RunStatus, tmp_path: Path) -> None:
    status.on_run_end(RuntimeError("node Oslo: the worker died"))
    assert message_of(tmp_path) == "node Oslo: the worker died"
    status.on_run_end(KeyboardInterrupt())
    assert message_of(tmp_path) == "interrupted"
