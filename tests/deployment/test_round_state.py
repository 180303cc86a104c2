"""What the calls of a round ask alike is asked once a second; what stops a call is asked each time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.common.constant import Status

from fednnunet.deployment.server.round_state import FRESH_SECONDS, RoundState

pytestmark = pytest.mark.unit


class Flowers:
    """Stands for Flower's state; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.nodes = {b"key": 5}
        self.tasks = {"token": "task"}
        self.status = Status.RUNNING
        self.traffic: list[tuple[int, int, int]] = []

    def get_node_id_by_public_key(self, key: bytes) -> int | None:
        self.asked.append("node")
        return self.nodes.get(key)

    def get_task_by_token(self, token: str) -> str | None:
        self.asked.append("task")
        return self.tasks.get(token)

    def get_run_status(self, runs: set[int]) -> dict[int, Any]:
        self.asked.append("run")
        return {run: SimpleNamespace(status=self.status) for run in runs if run == 7}

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        if run_id != 7:
            raise ValueError(f"Run {run_id} not found")
        self.traffic.append((run_id, bytes_sent, bytes_recv))


def ask_all(state: RoundState) -> tuple[int | None, Any, str | None]:
    runs = state.get_run_status({7})
    return state.get_node_id_by_public_key(b"key"), state.get_task_by_token("token"), runs[7].status


def test_what_lets_a_call_through_is_asked_again_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    flowers = Flowers()
    state = RoundState(lambda: flowers)
    assert ask_all(state) == ask_all(state) == (5, "task", Status.RUNNING)
    assert flowers.asked == ["run", "node", "task"]
    flowers.nodes, flowers.tasks, flowers.status = {}, {}, Status.FINISHED
    later = time.monotonic() + FRESH_SECONDS + 0.01
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert ask_all(state) == (None, None, Status.FINISHED)


def test_what_stops_a_call_is_asked_each_time() -> None:
    flowers = Flowers()
    flowers.nodes, flowers.tasks, flowers.status = {}, {}, Status.FINISHED
    state = RoundState(lambda: flowers)
    assert ask_all(state) == (None, None, Status.FINISHED)
    assert state.get_run_status({8}) == {}
    flowers.nodes, flowers.tasks, flowers.status = {b"key": 5}, {"token": "task"}, Status.RUNNING
    assert ask_all(state) == (5, "task", Status.RUNNING)


def test_one_key_token_or_run_does_not_stand_for_another() -> None:
    state = RoundState(Flowers)
    ask_all(state)
    assert state.get_node_id_by_public_key(b"token") is None
    assert state.get_task_by_token("key") is None
    assert state.get_run_status({8}) == {}


def test_bytes_are_stored_together_and_once() -> None:
    flowers = Flowers()
    state = RoundState(lambda: flowers)
    for run_id in (7, 7, 8):
        state.store_traffic(run_id, bytes_sent=3, bytes_recv=0)
        state.store_traffic(run_id, bytes_sent=0, bytes_recv=2)
    assert not flowers.traffic
    state.flush_traffic()
    state.flush_traffic()
    assert flowers.traffic == [(7, 6, 4)]


def test_all_else_is_flowers_own() -> None:
    flowers = Flowers()
    assert RoundState(lambda: flowers).tasks is flowers.tasks
