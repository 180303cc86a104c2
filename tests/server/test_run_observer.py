"""Every follower of a run is notified of every event."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from fednnunet.server.run_observer import RunObserver, RunObservers
from fednnunet.server.run_recorder import RunRecorder
from tests.support.recording_observer import RecordingObserver

EVENTS: dict[str, tuple[Any, ...]] = {
    "on_run_start": ({"seed": 0},),
    "on_stage": ("plan",),
    "on_message": ("node Porto is back",),
    "on_waiting": (["Porto"],),
    "on_plans": ({"Porto": {}},),
    "on_fold_start": ("all", 3, 1),
    "on_node_reply": ("Porto", 2, {"train_loss": 0.5}),
    "on_round_means": (2, {"train_loss": 0.5}),
    "on_round_end": (2, [{"node": "Porto"}]),
    "on_result": (Path("run"),),
    "on_run_end": (KeyboardInterrupt(),),
}


class Recorder:
    """Keeps name and arguments of every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.events.append((name, arguments))


def test_the_table_has_every_event() -> None:
    assert set(EVENTS) == {name for name, _ in inspect.getmembers(RunObserver, inspect.isfunction)}


@pytest.mark.parametrize("event", EVENTS)
def test_each_observer_of_several_is_told_of_every_event(event: str) -> None:
    first, second = Recorder(), Recorder()
    observers: Any = [first, second]
    getattr(RunObservers(observers), event)(*EVENTS[event])
    assert first.events == second.events == [(event, EVENTS[event])]


@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_need_not_follow_everything(event: str) -> None:
    assert getattr(RunObserver(), event)(*EVENTS[event]) is None


@pytest.mark.parametrize("nodes", [12, 13])
def test_lines_about_many_nodes_are_one_for_the_operator(tmp_path: Path, nodes: int) -> None:
    observer = RecordingObserver()
    lines = {f"H{number:02}": [f"node H{number:02}: no foreground"] for number in range(nodes)}
    RunRecorder(tmp_path, "asym", observers=[observer]).on_node_messages(lines, f"no foreground at {nodes} nodes")
    if nodes == 12:
        assert observer.messages == [line for (line,) in lines.values()]
    else:
        (message,) = observer.messages
        assert message.startswith("no foreground at 13 nodes: H00, H01, ")
        assert message.endswith("H11 and 1 more; train.log has what of each")
