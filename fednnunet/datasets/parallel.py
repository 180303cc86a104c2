"""Work on cases in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fednnunet.datasets.raw import Case
from fednnunet.errors import DataError

R = TypeVar("R")


def map_cases(function: Callable[[Case], R], cases: Sequence[Case], workers: int) -> Iterator[R]:
    """What ``function`` makes of each case, in order.

    Args:
        function: can be pickled, where ``workers`` are several.
        cases: to work on.
        workers: processes; 1 works in this one: others cost seconds of imports.

    Raises:
        DataError: a process was ended from outside.
    """
    if workers == 1:
        yield from map(function, cases)
        return
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver")) as pool:
            yield from pool.map(function, cases)
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} processes that read images was ended, mostly for lack of memory; use fewer processes"
        ) from None
