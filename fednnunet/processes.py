"""Processes: the cores they may use, work shared among them, an end with who started them, a file for their output."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

import psutil

from fednnunet.errors import DataError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""Format of a line in a log file."""

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(function: Callable[[T], R], items: Sequence[T], processes: int) -> Iterator[R]:
    """What ``function`` makes of each item, in order.

    Args:
        function: can be pickled, where ``processes`` are several.
        items: to work on.
        processes: 1 works in this one: others cost seconds of imports.

    Raises:
        DataError: a process was ended from outside.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    try:
        with ProcessPoolExecutor(processes, context, initializer=_begin) as pool:
            yield from pool.map(function, items)
    except BrokenProcessPool:
        raise DataError(
            f"one of {processes} processes that read images was ended, mostly for lack of memory; use fewer processes"
        ) from None


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its processes
    end_with_parent()


def end_with_parent() -> None:
    """End this process when the one that started it has died: that is started again, and this one is in its way."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def children_of(pid: int | None) -> list[psutil.Process]:
    """All processes that a process has started, and those that they have; none where it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def redirect_output(path: Path, mode: int) -> None:
    """All that this process prints goes to the end of a file, which is made with ``mode`` where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
