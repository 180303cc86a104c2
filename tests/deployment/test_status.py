"""``fednnunet server status``: of a server that runs, has died, or was never there."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from flwr.proto.node_pb2 import NodeInfo
from rich.console import Console

from fednnunet.cli.main import main
from fednnunet.deployment.keys import make_keys
from fednnunet.deployment.server.status import as_json, read_status
from fednnunet.deployment.server.status_screen import WHOLE, View, ago, render
from fednnunet.errors import ConfigError

pytestmark = pytest.mark.unit

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
INTERVAL = 30.0
WriteState = Callable[..., Path]


@pytest.fixture
def write_state(tmp_path: Path) -> WriteState:
    """Write the state folder of a server that this process stands for."""
    make_keys(tmp_path / "keys", ["127.0.0.1"], ["Oslo"], days=90)

    def write(run: dict[str, Any] | None = None, **changes: Any) -> Path:
        facts = {
            "address": "0.0.0.0:9092",
            "control": "127.0.0.1:4711",
            "tls": True,
            "keys": str(tmp_path / "keys"),
            "pid": os.getpid(),
            "version": "0.1.0",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        } | changes
        state = tmp_path / "server"
        state.mkdir(exist_ok=True)
        (state / "server.json").write_text(json.dumps(facts))
        if run is not None:
            (state / "run_status.json").write_text(json.dumps(RUN | run))
        return state

    return write


RUN: dict[str, Any] = {
    "run": "outputs/asym",
    "strategy": "asym",
    "dataset": "mamamia",
    "stage": "train",
    "fold": 0,
    "round": 12,
    "rounds": 1000,
    "nodes": {"Oslo": {"round": 12, "train_loss": -0.5126, "pseudo_dice": 0.71, "seen": "2030-05-01T11:58:00+00:00"}},
    "waiting_for": [],
    "updated": "2030-05-01T11:58:00+00:00",
    "finished": False,
}


def node_info(name: str, status: str, heartbeat: datetime) -> NodeInfo:
    """As Flower tells of a node whose last heartbeat came then."""
    return NodeInfo(
        node_id=len(name),
        name=name,
        status=status,
        registered_at="2030-04-01T00:00:00+00:00",
        last_activated_at="2030-05-01T08:00:00+00:00",
        online_until=heartbeat.timestamp() + 2 * INTERVAL,
        heartbeat_interval=INTERVAL,
    )


def known(_: Path) -> list[NodeInfo]:
    return [
        node_info("Porto", "offline", NOW - timedelta(minutes=90)),
        node_info("Oslo", "online", NOW - timedelta(seconds=12)),
        NodeInfo(node_id=3, name="Kaunas", status="registered", registered_at="2030-04-01T00:00:00+00:00"),
    ]


def printed(
    state: Path,
    ask: Callable[[Path], list[NodeInfo]] = known,
    now: datetime = NOW,
    view: View = WHOLE,
    width: int = 400,
) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width).print(render(read_status(state, ask), now, view))
    return [" ".join(line.split()) for line in output.getvalue().splitlines()]


def test_nodes_are_shown_with_their_last_heartbeat_and_round(write_state: WriteState) -> None:
    lines = printed(write_state({}))
    assert "nodes 1 of 3 online" in lines
    assert "run asym on mamamia, fold 0, round 12 of 1000; outputs/asym" in lines
    assert "last change 2 min 0 s ago" in lines
    table = lines[lines.index("node state last seen round loss pseudo-Dice") + 1 :]
    assert table == [
        "Kaunas offline never",
        "Oslo online 12 s ago 12 -0.513 0.710",
        "Porto offline 1 h 30 min ago",
    ]


def test_nodes_that_the_run_waits_for_are_named(write_state: WriteState) -> None:
    lines = printed(
        write_state({"waiting_for": ["Porto"], "updated": "2030-05-01T10:00:00+00:00", "message": "node Porto is away"})
    )
    assert lines[lines.index("waits for Porto, for 2 h 0 min") + 1] == "node Porto is away"
    assert "Porto offline, waited for 1 h 30 min ago" in lines


def test_other_stages_and_the_end_of_a_run_are_named(write_state: WriteState) -> None:
    assert "run asym on mamamia, stage preprocess; outputs/asym" in printed(
        write_state({"stage": "preprocess", "fold": None})
    )
    assert "finished 2 min 0 s ago" in printed(write_state({"finished": True, "waiting_for": ["Porto"]}))


def test_before_the_first_run_there_is_none_to_show(write_state: WriteState) -> None:
    state = write_state()
    assert read_status(state, known).run is None
    assert not [line for line in printed(state) if line.startswith("run")]


@pytest.mark.parametrize(
    ("days", "says"),
    [
        (0.5, "the certificate is valid for 89 days"),
        (70, "the certificate is valid for 19 days"),
        (91, "the certificate expired on"),
    ],
)
def test_the_days_of_the_certificate_are_counted(days: float, says: str, write_state: WriteState) -> None:
    lines = printed(write_state(), now=datetime.now(UTC) + timedelta(days=days))
    assert [line for line in lines if says in line]


def test_a_server_without_tls_says_so(write_state: WriteState) -> None:
    lines = printed(write_state(tls=False, keys=None))
    assert "plain HTTP, no node keys" in lines[0]
    assert not [line for line in lines if line.startswith("TLS")]


def test_a_server_that_has_died_is_not_asked(write_state: WriteState) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def ask(_: Path) -> list[NodeInfo]:
        raise AssertionError

    state = write_state({}, pid=gone.pid)
    lines = printed(state, ask)
    assert lines[0].startswith(f"server has died: process {gone.pid} is gone; restart it")
    assert "run asym on mamamia, fold 0, round 12 of 1000; outputs/asym" in lines


def test_another_process_with_the_id_of_a_dead_server_is_not_the_server(write_state: WriteState) -> None:
    before = datetime.fromtimestamp(psutil.Process().create_time(), UTC) - timedelta(days=1)
    assert "has died" in printed(write_state(started=before.isoformat(timespec="seconds")))[0]


def test_a_server_that_does_not_answer_is_reported_with_its_log(write_state: WriteState) -> None:
    def ask(_: Path) -> list[NodeInfo]:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    state = write_state()
    assert printed(state, ask)[0] == (
        f"server does not answer at 127.0.0.1:4711 ([Errno 111] Connection refused); see {state / 'server.log'}"
    )


def test_no_server_and_damaged_files_are_errors_that_name_them(tmp_path: Path, write_state: WriteState) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "nowhere")):
        read_status(tmp_path / "nowhere", known)
    state = write_state({"updated": "yesterday"})
    with pytest.raises(ConfigError, match=r"run_status\.json was not written by a run: updated: "):
        read_status(state, known)
    for content in (b"", b"{", b"[]", b"\xff\xfe", b'{"address": "127.0.0.1:1"}'):
        (state / "server.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"server\.json is damaged, or of another version; start the server"):
            read_status(state, known)


def test_the_status_is_available_as_json(write_state: WriteState) -> None:
    content = json.loads(as_json(read_status(write_state({}), known)))
    assert [(node["name"], node["online"]) for node in content["nodes"]] == [
        ("Kaunas", False),
        ("Oslo", True),
        ("Porto", False),
    ]
    assert content["nodes"][1]["seen"] == "2030-05-01T11:59:48Z"
    assert content["nodes"][1]["progress"]["pseudo_dice"] == 0.71
    assert content["nodes"][0]["progress"] is None
    assert content["run"]["round"] == 12
    assert content["problem"] is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (90000, "1 d 1 h")]
)
def test_times_have_two_units(seconds: int, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_a_running_server_reports_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_keys(tmp_path / "keys", ["127.0.0.1"], ["Oslo", "Porto"])
    state = tmp_path / "server"
    monkeypatch.setattr(sys, "argv", ["fednnunet", "server", "status", "--state", str(state)])
    command = [
        sys.executable,
        "-m",
        "fednnunet.cli.main",
        "server",
        "up",
        str(tmp_path / "keys"),
        "--state",
        str(state),
    ]
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    command += ["--address", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unbuffered) as server:
        try:
            assert server.stdout is not None
            assert any(line.endswith("node Porto may join\n") for line in server.stdout), "reads up to this line"
            with pytest.raises(SystemExit) as finished:
                main()
            assert finished.value.code == 0
        finally:
            server.terminate()
    assert "0 of 2 online" in capsys.readouterr().out
    assert main() == 2
    assert str(state) in capsys.readouterr().err


def hundred(_: Path) -> list[NodeInfo]:
    """H000 to H099; H070 is offline."""
    seen = NOW - timedelta(seconds=12)
    return [node_info(f"H{number:03}", "offline" if number == 70 else "online", seen) for number in range(100)]


@pytest.fixture
def many(write_state: WriteState) -> Path:
    """A run of a hundred nodes in round 13: half of them have replied; it waits for H080 to H089."""
    nodes = {
        f"H{number:03}": {"round": 13 if number < 50 else 12, "train_loss": -0.5, "pseudo_dice": number / 100}
        for number in range(90)
    }
    return write_state({"nodes": nodes, "waiting_for": [f"H{number:03}" for number in range(80, 90)] + ["X" * 4] * 3})


def test_a_hundred_nodes_fit_a_small_screen_with_those_first_that_need_a_look(many: Path) -> None:
    lines = printed(many, hundred, width=80)
    assert len(lines) <= 24
    assert "nodes 99 of 100 online" in lines
    assert "50 have replied to round 13; pseudo-Dice:" in lines
    assert "median 0.245, 0.000 (H000) to 0.490 (H049)" in lines
    assert "waits for H080, H081, H082, H083 and 9 more, for 2 min 0 s" in lines
    rows = [line.split()[0] for line in lines if line.startswith("H")]
    assert rows == [*(f"H{number:03}" for number in range(80, 90)), "H070", "H050"], "waited for, offline, behind"
    assert lines[-1] == "nodes 1 to 12 of 100, page 1 of 9: --page, --search NAME, --failed"


def test_pages_hold_every_node_once(many: Path) -> None:
    pages = [printed(many, hundred, view=View(page)) for page in range(1, 10)]
    rows = [line.split()[0] for lines in pages for line in lines if line.startswith("H")]
    assert sorted(rows) == [f"H{number:03}" for number in range(100)]
    assert pages[-1][-1].startswith("nodes 97 to 100 of 100, page 9 of 9")
    assert printed(many, hundred, view=View(page=99)) == pages[-1], "there are fewer pages now"


@pytest.mark.parametrize(
    ("view", "shown", "says"),
    [
        (View(search="h03"), [f"H03{digit}" for digit in range(10)], "nodes 1 to 10 of 10"),
        (View(failed=True), [*(f"H{number:03}" for number in range(80, 90)), "H070"], "nodes 1 to 11 of 11"),
        (View(search="Riga"), [], "no such node"),
    ],
)
def test_nodes_are_found_by_name_and_by_failure(many: Path, view: View, shown: list[str], says: str) -> None:
    lines = printed(many, hundred, view=view)
    assert [line.split()[0] for line in lines if line.startswith("H")] == shown
    assert lines[-1] == says


def test_json_has_all_nodes_whatever_the_screen_would_show(
    many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(json.loads(as_json(read_status(many, hundred)))["nodes"]) == 100
    monkeypatch.setattr("sys.argv", ["fednnunet", "server", "status", "--state", str(many), "--json", "--page", "2"])
    assert main() == 2
    assert "--json has all nodes; leave out --page, --search and --failed" in capsys.readouterr().err
