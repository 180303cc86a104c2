"""The relay: what it imports, what it hands on, what it answers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fednnunet.client_app import app
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.error_codes import ERROR_CODES
from fednnunet.exchange.messages import Failure, Kind, PreprocessReply, TrainReply, TrainRequest
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.server.local_grid import LocalGrid

KEY = b"k" * 32


def test_relay_imports_no_training_library() -> None:
    code = (
        "import sys, fednnunet.client_app\n"
        "print([name for name in ('torch', 'lightning', 'nnunetv2', 'monai', 'fednnunet.node') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


Answer = Callable[[Request], object]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Message]]:
    """Send one message over the local grid to a worker's channel that answers with the given function."""
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(KEY)
    channel = WorkerChannel("s", KEY)
    grid = LocalGrid(app, {7: {"socket": "s", "key-file": "key"}}, 1)

    def send(kind: Kind, body: str, answer: Answer, arrays: ArrayRecord | None = None) -> Message:
        def work() -> None:
            request = channel.receive(timeout=10)
            if request is not None:
                answer(request)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        content = RecordDict({"config": ConfigRecord({"body": body})})
        if arrays is not None:
            content["arrays"] = arrays
        message = Message(content, dst_node_id=7, message_type=kind.value)
        (reply,) = grid.send_and_receive([message], timeout=20)
        return reply

    yield send
    grid.close()
    channel.close()


def test_train_reply_has_what_flowers_strategies_need(ask: Callable[..., Message]) -> None:
    seen: list[tuple[bytes, dict[str, np.ndarray]]] = []

    def answer(request: Request) -> None:
        seen.append((request.body, {name: array.copy() for name, array in request.arrays.items()}))
        request.reply(TrainReply(server_round=4, num_examples=12, train_loss=-0.5).model_dump_json())

    arrays = to_array_record({"w": np.arange(3, dtype=np.float32)})
    body = TrainRequest(server_round=4, layers=["w"]).model_dump_json()
    reply = ask(Kind.TRAIN, body, answer, arrays)
    assert TrainRequest.model_validate_json(seen[0][0]).server_round == 4
    assert np.array_equal(seen[0][1]["w"], from_array_record(arrays, "here")["w"])
    assert reply.content.metric_records["metrics"]["num-examples"] == 12
    assert reply.content.metric_records["metrics"]["train_loss"] == -0.5
    assert "val_loss" not in reply.content.metric_records["metrics"]
    assert reply.metadata.src_node_id == 7


def test_failure_of_the_worker_is_an_error_reply(ask: Callable[..., Message]) -> None:
    reply = ask(Kind.PREPROCESS, "{}", lambda request: request.fail(Failure(reason="disk full", error="data")))
    assert reply.error.code == ERROR_CODES["data"]
    assert reply.error.reason == "disk full"


def test_malformed_reply_of_the_worker_is_an_error_reply(ask: Callable[..., Message]) -> None:
    reply = ask(Kind.PREPROCESS, "{}", lambda request: request.reply('{"seconds": -1}'))
    assert reply.error.code == ERROR_CODES["protocol"]
    assert "PreprocessReply: seconds" in str(reply.error.reason)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.TRAIN, '{"server_round": 1, "layers": ["../../etc/passwd"]}'),
        (Kind.TRAIN, '{"server_round": 1, "layers": [], "command": "rm"}'),
        (Kind.EVALUATE, "not json"),
        (Kind.PLAN, '{"fingerprint": null, "num_training": 0}'),
    ],
)
def test_malformed_requests_do_not_reach_the_worker(ask: Callable[..., Message], kind: Kind, body: str) -> None:
    reached: list[Request] = []
    reply = ask(kind, body, reached.append)
    assert reply.error.code == ERROR_CODES["protocol"]
    assert "the server sent a malformed" in str(reply.error.reason)
    assert not reached


def test_absent_worker_is_an_error_reply(ask: Callable[..., Message]) -> None:
    reply = ask(Kind.PREPROCESS, "{}", lambda request: request.close())
    assert reply.error.code == ERROR_CODES["unreachable"]


def test_good_reply_passes(ask: Callable[..., Message]) -> None:
    good = PreprocessReply(seconds=1.5, num_training=8, num_validation=2, epochs=3, iterations=5).model_dump_json()
    reply = ask(Kind.PREPROCESS, "{}", lambda request: request.reply(good))
    assert reply.content.config_records["config"]["body"] == good
