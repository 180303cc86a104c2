"""Five nodes at one server, of which one is late: real server and connections, scripted workers."""

from __future__ import annotations

import multiprocessing
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fednnunet.cli.main import main
from fednnunet.config.node_file import read_node_file
from fednnunet.deployment.node.connection import run_connection
from fednnunet.deployment.server.run_server_app import run_across_machines
from fednnunet.deployment.server.run_status import RunStatus
from fednnunet.exchange.channel import WorkerChannel
from fednnunet.server.run_observer import RunObserver
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.server_app import build_server_app
from fednnunet.server.session import ServerSettings
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from tests.support.deployed_federation import Federation, waiting_server
from tests.support.recording_observer import RecordingObserver
from tests.support.scripted_federation import KEY, ROUNDS, Answer, Fault, ScriptedNode

NAMES = ("Oslo", "Porto", "Riga", "Turku", "Lund")
LATE = "Porto"
ON_TIME = sorted(set(NAMES) - {LATE})
LATE_IN = 2
DEADLINE_S = 3.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with waiting_server(tmp_path_factory.mktemp("federation"), *NAMES) as federation:
        yield federation


@pytest.fixture
def nodes(server: Federation) -> Iterator[dict[str, ScriptedNode]]:
    """Connected nodes whose workers follow a script."""
    nodes = {name: ScriptedNode(name) for name in NAMES}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_connection.__module__])
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes")))
        (sockets / "key").write_bytes(KEY)
        for name, node in nodes.items():
            channel = WorkerChannel(sockets / name, KEY)
            stack.callback(channel.close)
            threading.Thread(target=node.serve, args=(channel,), daemon=True).start()
            node_file = read_node_file(server.write_node_file(name, data=1))  # no worker reads data
            config = {"socket": str(sockets / name), "key-file": str(sockets / "key")}
            log = server.folder / f"{name}.connection.log"
            process = context.Process(target=run_connection, args=(node_file, config, log))
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
        yield nodes


class AtTheEndOf(RunObserver):
    """Does something once, at the end of a round."""

    def __init__(self, server_round: int, do: Callable[[], None]) -> None:
        self.server_round, self.do = server_round, do

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if server_round == self.server_round:
            self.do()


def test_a_round_closes_without_the_node_that_is_late(
    server: Federation,
    nodes: dict[str, ScriptedNode],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    is_over = threading.Event()

    def be_late(_: Answer) -> None:
        assert is_over.wait(120), "the round waits for the late node"

    shown: list[str] = []

    def show_status() -> None:
        monkeypatch.setattr(sys, "argv", ["fednnunet", "server", "status", "--state", str(server.state), "--page", "1"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out)
        is_over.set()

    nodes[LATE].fault = Fault("", worker=be_late, of=str(LATE_IN))
    told = RecordingObserver()
    status = RunStatus(server.state, tmp_path, strategy="asym", dataset="scripted")
    settings = ServerSettings(
        fingerprint=None,
        folds=[0],
        timeout=100.0,  # nodes may take their time to join; see below
        min_nodes=len(ON_TIME),
        expected_nodes=len(NAMES),
        wait_for_nodes=True,
        run="run",
        shared_config={},
        centres=dict.fromkeys(NAMES, False),
    )

    def set_deadline() -> None:
        object.__setattr__(settings, "timeout", DEADLINE_S)

    events = AtTheEndOf(LATE_IN - 1, set_deadline), AtTheEndOf(LATE_IN, show_status)
    recorder = RunRecorder(tmp_path, "asym", [0], [told, status, *events])
    run_across_machines(server.state, tmp_path, build_server_app(settings, AsymFedAvg(), recorder), told.on_message)

    in_round = pd.read_csv(tmp_path / "rounds.csv").groupby("round").node.agg(sorted)
    assert in_round[LATE_IN] == ON_TIME
    assert all(len(names) >= len(ON_TIME) for names in in_round)
    assert len(in_round) == ROUNDS
    sent = [nodes[name].sent[0, LATE_IN] for name in ON_TIME]
    received = [node.received[0, LATE_IN + 1] for node in nodes.values() if (0, LATE_IN + 1) in node.received]
    assert len(received) >= len(ON_TIME)
    for layers in received:  # what the next round starts from is numpy's average of those that were in time
        for layer, array in layers.items():
            np.testing.assert_allclose(array, np.mean([one[layer] for one in sent], axis=0), rtol=1e-6)
    (screen,) = shown
    assert f"{len(NAMES)} of {len(NAMES)} online" in screen
    assert f"node {LATE}: round {LATE_IN}: no reply within {DEADLINE_S} s" in screen
    rounds = dict(re.findall(r"^(\w+) +online .* ago +(\d+) ", screen, re.MULTILINE))
    assert rounds == dict.fromkeys(ON_TIME, str(LATE_IN)) | {LATE: str(LATE_IN - 1)}
