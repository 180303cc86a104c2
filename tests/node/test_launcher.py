"""Folders of sockets: never left behind for long, and nothing else is ever removed; the process that workers share."""

from __future__ import annotations

import stat
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fednnunet.errors import NodeError
from fednnunet.node.launcher import SOCKETS_FILE, NodeProcesses, socket_folder, worker_address
from fednnunet.node.settings import WorkerPlan


def test_a_folder_of_sockets_is_its_users_alone_and_removed_at_the_end(tmp_path: Path) -> None:
    with socket_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert worker_address(folder, "worker").key_file.is_file()
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    killed = socket_folder(tmp_path)
    left = killed.__enter__()  # and never left, as after kill -9
    key = worker_address(left, "worker").key_file
    with socket_folder(tmp_path) as folder:
        assert not key.exists()
        assert not left.exists()
        assert folder.is_dir()


@pytest.mark.parametrize("name", ["precious", "fednnunet-link"])
def test_nothing_but_a_folder_of_sockets_is_removed(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    if name != "precious":
        (tmp_path / name).symlink_to(precious)
    owner = tmp_path / "owner"
    owner.mkdir()
    (owner / SOCKETS_FILE).write_text(str(tmp_path / name))
    with socket_folder(owner):
        pass
    assert (precious / "file").is_file()


class Ended:
    """A context whose processes cannot be forked: what they are forked from is gone."""

    @staticmethod
    def Pipe(duplex: bool) -> tuple[Any, Any]:
        return Pipe(duplex)

    @staticmethod
    def Process(**options: object) -> Any:
        return Ended()

    def start(self) -> None:
        raise ConnectionRefusedError(111, "Connection refused")


def test_workers_that_cannot_be_started_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fednnunet.node.launcher.worker_context", lambda *modules: Ended)
    settings: Any = SimpleNamespace(name="Oslo", folder=tmp_path / "nodes" / "Oslo")
    with pytest.raises(NodeError, match=r"^node Oslo: its worker cannot be started: .* a lack of memory$"):
        NodeProcesses([WorkerPlan({1: settings})]).__enter__()
    assert not (tmp_path / "nodes" / SOCKETS_FILE).exists()


def test_watching_memory_takes_a_hundredth_of_a_core_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(0.002, 3 * 2**30), (0.05, 5 * 2**30), (0.2, 4 * 2**30)])  # seconds of the processor, bytes
    clock, pauses = [0.0], []

    def look(pid: int) -> int:
        seconds, size = next(looks)
        clock[0] += seconds
        return size

    def wait(pause: float) -> bool:
        pauses.append(pause)
        return len(pauses) == 4

    monkeypatch.setattr("fednnunet.node.launcher.memory_of_tree", look)
    monkeypatch.setattr("fednnunet.node.launcher.time.thread_time", lambda: clock[0])
    processes = NodeProcesses([])
    monkeypatch.setattr(processes, "_stop", SimpleNamespace(wait=wait))
    processes._watch_memory()
    assert pauses == pytest.approx([1, 1, 5, 20]), "many nodes are looked at less often, not longer"
    assert processes.peak_memory_gib == 5


IMPORTS = """
import signal
from multiprocessing import forkserver
from pathlib import Path
from fednnunet.node.launcher import worker_context
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this suite was started with
worker_context("json")
pid = forkserver._forkserver._forkserver_pid
ignored = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
print(int(ignored.split()[1], 16) >> (signal.SIGINT - 1) & 1, signal.getsignal(signal.SIGINT).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_does_not_interrupt_the_imports_that_workers_share() -> None:
    shown = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["1", "default_int_handler"]
