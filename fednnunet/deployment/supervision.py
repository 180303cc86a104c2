"""Processes that are kept alive: started, started again when they die, ended together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from fednnunet.processes import children_of, redirect_output

log = logging.getLogger(__name__)

PAUSES = (0.0, 1.0, 5.0, 15.0)
"""Seconds before a process is started again; the last for all further times."""
STEADY_SECONDS = 60.0
"""One that lived so long starts from the first pause again."""
POLL_SECONDS = 1.0
END_SECONDS = 8.0
OTHER_RUN = 75
"""Exit code of a worker that is to be started again, for another run."""
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class SupervisedProcess:
    """One process, and those that take its place.

    Args:
        name: for the operator.
        start: makes and starts the process.
        meant: exit codes with which it asks to be started again at once; nothing is told then.
    """

    def __init__(self, name: str, start: Callable[[], BaseProcess], meant: Sequence[int] = ()) -> None:
        self.name = name
        self._start = start
        self._meant = meant
        self._deaths = 0
        self._due: float | None = 0.0
        self._begun = 0.0
        self.process: BaseProcess | None = None

    def look(self, tell: Callable[[str], None]) -> None:
        """Start the process where there is none, as soon as it is due."""
        now = time.monotonic()
        if self.process is not None and not self.process.is_alive():
            code, self.process = self.process.exitcode, None
            if code in self._meant:
                self._due = now
            else:
                self._deaths = 0 if now - self._begun > STEADY_SECONDS else self._deaths
                pause = PAUSES[min(self._deaths, len(PAUSES) - 1)]
                self._deaths += 1
                self._due = now + pause
                tell(f"the {self.name} ended ({_said(code)}); it is started again{f' in {pause:g} s' if pause else ''}")
        if self.process is None and self._due is not None and now >= self._due:
            self.process, self._begun = self._start(), now

    def end(self) -> None:
        """End the process and what it started."""
        process, self._due = self.process, None
        if process is None:
            return
        children = children_of(process.pid)
        process.terminate()
        process.join(END_SECONDS)
        if process.is_alive():
            log.warning("the %s did not end; killed", self.name)
            process.kill()
            process.join()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def supervise(kept: Sequence[SupervisedProcess], ended: threading.Event, tell: Callable[[str], None]) -> Iterator[None]:
    """Look after processes until ``ended`` is set, then end them; yields after each look.

    Args:
        kept: to be started, in this order, and ended, in the other.
        ended: by a signal.
        tell: gets a line for the operator when one has died.
    """
    try:
        while not ended.is_set():
            for one in kept:
                one.look(tell)
            yield
            wait([one.process.sentinel for one in kept if one.process is not None], POLL_SECONDS)
    finally:
        for one in reversed(kept):
            one.end()


def ended_by_signal() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


def terminal() -> Callable[[str], None]:
    """Writes a line where this process's output goes now, also after :func:`log_to`."""
    kept = os.dup(1)

    def tell(text: str) -> None:
        with contextlib.suppress(OSError):  # closed, or full
            os.write(kept, f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {text}\n".encode())

    return tell


def log_to(path: Path) -> None:
    """All that this process logs and prints goes to the end of a file."""
    redirect_output(path, 0o600)
    logging.basicConfig(level=logging.INFO, format=LINE, stream=sys.stderr, force=True)


def _said(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
