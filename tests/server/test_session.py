"""What a run does about nodes that fail, and which nodes it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.clientapp import ClientApp

from fednnunet.errors import NodeError
from fednnunet.exchange.messages import FingerprintReply
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Federation, ServerSettings, Session
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from tests.support.recording_observer import RecordingObserver

FAILURES = [NodeError("Porto", "its disk is full"), NodeError("Riga", "no reply within 20 s")]


def accept(folder: Path, min_nodes: int | None, failures: list[NodeError], remaining: int | None) -> list[str]:
    """Messages to the operator."""
    observer = RecordingObserver()
    recorder = RunRecorder(folder, "asym", observers=[observer])
    settings = ServerSettings(None, [0], timeout=20, min_nodes=min_nodes)
    grid = LocalGrid(ClientApp(), {}, 1)
    session = Session(NodeClient(grid), settings, AsymFedAvg(), recorder)
    try:
        session.accept_failures(failures, remaining, "it is left out")
    finally:
        grid.close()
    return observer.messages


@pytest.mark.parametrize(("min_nodes", "remaining"), [(2, 2), (2, 3), (2, None)])
def test_failures_are_reported_where_enough_nodes_remain(tmp_path: Path, min_nodes: int, remaining: int | None) -> None:
    assert accept(tmp_path, min_nodes, FAILURES, remaining) == [
        "node Porto: its disk is full; it is left out",
        "node Riga: no reply within 20 s; it is left out",
    ]


@pytest.mark.parametrize(("min_nodes", "remaining"), [(2, 1), (2, 0), (None, 3), (None, None)])
def test_the_first_failure_ends_the_run_where_too_few_remain_or_all_are_needed(
    tmp_path: Path, min_nodes: int | None, remaining: int | None
) -> None:
    with pytest.raises(NodeError, match=r"^node Porto: its disk is full$"):
        accept(tmp_path, min_nodes, FAILURES, remaining)


@pytest.mark.parametrize("min_nodes", [None, 2])
def test_without_failures_nothing_is_required(tmp_path: Path, min_nodes: int | None) -> None:
    assert accept(tmp_path, min_nodes, [], remaining=0) == []


def description(name: str, label: str = "tumour", cases: int = 5) -> FingerprintReply:
    return FingerprintReply(
        node=name,
        external=not cases,
        num_training=cases,
        configuration="2d",
        channel_names={"0": "MRI"},
        labels={"background": 0, label: 1},
        file_ending=".nii.gz",
    )


def test_nodes_are_sorted_by_name_and_by_what_they_do() -> None:
    federation = Federation(
        {
            7: description("Riga"),
            3: description("Turku", cases=0),
            5: description("Oslo", "liver"),
            1: description("Lund"),
        }
    )
    assert [federation.name(node) for node in federation.nodes] == ["Lund", "Oslo", "Riga", "Turku"]
    assert (federation.training, federation.external, federation.num_training) == ([1, 5, 7], [3], 15)
    assert federation.of_same_task(3) == [1, 7], "Oslo has other labels"
    federation.remove([1])
    assert (federation.training, federation.name(1)) == ([5, 7], "1")
