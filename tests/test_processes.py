"""Work in several processes: in order, and no waiting for one that is gone."""

from __future__ import annotations

import os
import signal

import pytest

from fednnunet.errors import DataError
from fednnunet.processes import map_in_processes

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
