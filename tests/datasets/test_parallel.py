"""Cases in several processes: in order, and no waiting for one that is gone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fednnunet.datasets.parallel import map_cases
from fednnunet.datasets.raw import Case
from fednnunet.errors import DataError

CASES = [Case(f"case_{number:03d}", (), Path(str(number))) for number in range(12)]


def name(case: Case) -> tuple[str, int]:
    return case.name, os.getpid()


def end_abruptly(case: Case) -> None:
    if case.name == "case_007":
        os.kill(os.getpid(), signal.SIGKILL)  # as a machine does that is out of memory


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_cases(workers: int) -> None:
    names, processes = zip(*map_cases(name, CASES, workers), strict=True)
    assert list(names) == [case.name for case in CASES]
    assert (os.getpid() in processes) == (workers == 1)


def test_a_process_that_is_killed_is_an_error_and_no_endless_wait() -> None:
    with pytest.raises(DataError, match="one of 2 processes that read images was ended"):
        list(map_cases(end_abruptly, CASES, 2))
