"""Processes: cores they may use, work shared among them, their end with others, and a file for their output."""

from __future__ import annotations

import ctypes
import io
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
PR_SET_PDEATHSIG = 1
"""Option of Linux' ``prctl``: the signal that a process gets when its parent dies."""

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def children_of(pid: int | None) -> list[psutil.Process]:
    """All processes that a process has started, and those that they have; none where it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


# work -------------------------------------------------------------------------------------------------


def map_in_processes(function: Callable[[T], R], items: Sequence[T], processes: int) -> Iterator[R]:
    """Results of ``function`` for each item, in order.

    Args:
        function: function to call; with several processes it must be picklable.
        items: arguments, one per call.
        processes: number of processes; 1 works in this one, since others cost seconds of imports.

    Raises:
        DataError: a process was ended from outside.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    try:
        with ProcessPoolExecutor(processes, context, initializer=_start_pool_process) as pool:
            yield from pool.map(function, items)
    except BrokenProcessPool:
        raise DataError(
            f"one of {processes} processes that read images was ended, mostly for lack of memory; use fewer processes"
        ) from None


def _start_pool_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its processes
    end_with_parent()


# end with others --------------------------------------------------------------------------------------


def end_with(wait_for_end: Callable[[], object], name: str, stop: Callable[[], None] = lambda: None) -> None:
    """End this process, with exit code 1, when others have ended.

    Args:
        wait_for_end: returns when they have; called in a thread.
        name: name of the thread; where one of this name runs already, nothing is done.
        stop: called before the end.
    """
    if any(thread.name == name for thread in threading.enumerate()):
        return

    def watch() -> None:
        wait_for_end()
        stop()
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()


def end_with_parent(*, forks_too: bool = False) -> None:
    """End this process when the one that started it has died: that one is restarted, and this one is in its way.

    Args:
        forks_too: on Linux, also kill what this process forks from now on when this process dies. Forked processes
            have no watching thread.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_with(lambda: wait([parent.sentinel]), "parent-watch")
    if forks_too and sys.platform == "linux":
        os.register_at_fork(after_in_child=_die_with_parent)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# output -----------------------------------------------------------------------------------------------


def redirect_output(path: Path, mode: int) -> None:
    """Append all that this process prints to a file.

    Args:
        path: the file; created with its folder where it does not exist.
        mode: permissions of a new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the terminal could show
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
