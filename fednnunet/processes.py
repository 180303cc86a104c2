"""Processes: cores they may use, work shared among them, their end with others, and a file for their output."""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import TypeVar

import psutil

from fednnunet.errors import ConfigError, DataError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""Format of a line in a log file."""
LONGEST_TEMP_FOLDER = 70
"""Bytes: the path of a Unix socket holds 107, of which multiprocessing adds 32."""
TEMP_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  what is made in them has names that nobody can guess
"""Taken in the place of one that is longer."""
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


# start ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sigint_ignored_by_children() -> Iterator[None]:
    """Processes that are started meanwhile ignore Ctrl-C, which this one misses for that moment.

    It reaches the whole group; one that it meets at its imports would show where these were interrupted.
    """
    if threading.current_thread() is not threading.main_thread():  # which may not set this
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


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


class EndedBySignal(KeyboardInterrupt):
    """A signal that ends this process as Ctrl-C does.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it, SIGTERM and the end of the terminal are raised as :class:`EndedBySignal`, each once.

    ``nohup`` still keeps a process alive without its terminal.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # what is being tidied up is not interrupted again
        raise EndedBySignal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# temporary files --------------------------------------------------------------------------------------


def shorten_temp_folder() -> str | None:
    """Use another folder for temporary files where the path of the present one is too long for sockets in it.

    Returns:
        What was changed, for the user.

    Raises:
        ConfigError: there is no other folder that can be written.
    """
    present = tempfile.gettempdir()
    if len(os.fsencode(present)) <= LONGEST_TEMP_FOLDER:
        return None
    for folder in TEMP_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            os.environ["TMPDIR"] = tempfile.tempdir = folder
            return f"the path of TMPDIR is too long for sockets in it, so {folder} is used: {present}"
    raise ConfigError(f"TMPDIR={present}: longer than {LONGEST_TEMP_FOLDER} bytes; set it to a shorter path")


# output -----------------------------------------------------------------------------------------------


def open_output(path: Path, mode: int) -> int:
    """Descriptor of a file to append to; created with its folder and permissions ``mode`` where it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)


def show_in(file: int) -> None:
    """Append all that this process prints from now on to an open file."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)


def redirect_output(path: Path, mode: int) -> None:
    """Append all that this process prints to a file.

    Args:
        path: the file; created with its folder where it does not exist.
        mode: permissions of a new file.
    """
    file = open_output(path, mode)
    show_in(file)
    os.close(file)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the terminal could show
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
