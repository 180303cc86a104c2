"""Work in several processes: in order, and no waiting for one that is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

import pytest

from fednnunet.errors import DataError
from fednnunet.processes import end_with, map_in_processes

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
