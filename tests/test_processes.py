"""Work in several processes: in order, and no waiting for one that is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fednnunet.errors import ConfigError, DataError
from fednnunet.processes import end_with, ended_by_signals, map_in_processes, shorten_temp_folder

NUMBERS = range(12)


def double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def end_abruptly(number: int) -> None:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)  # as a machine does that is out of memory


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    doubled, processes = zip(*map_in_processes(double, NUMBERS, workers), strict=True)
    assert list(doubled) == [2 * number for number in NUMBERS]
    assert (os.getpid() in processes) == (workers == 1)


def test_a_process_that_is_killed_is_an_error_and_no_endless_wait() -> None:
    with pytest.raises(DataError, match="one of 2 processes that read images was ended"):
        list(map_in_processes(end_abruptly, NUMBERS, 2))


def watch(connection: Connection) -> None:
    for _ in range(2):  # the second changes nothing
        end_with(connection.recv_bytes, "watch", lambda: connection.send_bytes(b"stopping"))
    threading.Event().wait()


def test_a_process_ends_with_what_it_watches() -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=watch, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    ours.send_bytes(b"ended")
    assert ours.recv_bytes() == b"stopping"
    process.join(30)
    assert process.exitcode == 1
    with pytest.raises(EOFError):
        ours.recv_bytes()


# the temporary folder ------------------------------------------------------------------------------------

SOCKETS = """
import sys
from fednnunet.processes import map_in_processes, shorten_temp_folder
if __name__ == "__main__":
    print(shorten_temp_folder())
    print(list(map_in_processes(abs, [-1, -2], 2)))
"""


def test_a_temp_folder_that_is_too_long_for_sockets_is_replaced(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 110)
    long.mkdir()
    (tmp_path / "script.py").write_text(SOCKETS)
    environment = os.environ | {"TMPDIR": str(long)}
    result = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, env=environment
    )
    said, results = result.stdout.splitlines()
    assert said == f"the path of TMPDIR is too long for sockets in it, so /tmp is used: {long}"
    assert results == "[1, 2]", result.stderr


def test_without_another_temp_folder_the_user_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 110)))
    monkeypatch.setattr("fednnunet.processes.TEMP_FOLDERS", (str(tmp_path / "none"),))
    with pytest.raises(ConfigError, match=r"^TMPDIR=.*: longer than 70 bytes; set it to a shorter path"):
        shorten_temp_folder()


# signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_as_ctrl_c_does_and_only_once(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    tidied = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            threading.Event().wait(60)
        finally:
            os.kill(os.getpid(), number)
            tidied.append(True)

    try:
        with pytest.raises(KeyboardInterrupt, match=f"ended by {number.name}"), ended_by_signals():
            work()
        assert tidied
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_without_its_terminal_a_process_of_nohup_goes_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
