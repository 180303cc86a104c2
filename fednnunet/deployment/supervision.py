"""Supervised processes: started, restarted when they die, ended together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from fednnunet.errors import FednnUNetError, one_line
from fednnunet.plain_output import PLAINER
from fednnunet.processes import LOG_FORMAT, children_of, redirect_output

log = logging.getLogger(__name__)

PAUSES = (0.0, 1.0, 5.0, 15.0)
"""Seconds before a process is restarted; the last value for all further restarts."""
STEADY_SECONDS = 60.0
"""A process that lived this long starts from the first pause again."""
POLL_SECONDS = 1.0
END_SECONDS = 8.0
REPEAT_SECONDS = 60.0
"""The operator is not told the same again before: a server asks again where a disk is full."""
OTHER_RUN = 75
"""Exit code of a worker that asks to be restarted for another run."""


class SupervisedProcess:
    """One process, and the processes that replace it.

    Args:
        name: shown to the operator.
        start: creates and starts the process.
        expected_exit_codes: with these the process asks to be restarted at once; the operator is not notified.
        final_exit_codes: with these it is not restarted, and the error is raised.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], BaseProcess],
        expected_exit_codes: Sequence[int] = (),
        final_exit_codes: Mapping[int, FednnUNetError] | None = None,
    ) -> None:
        self.name = name
        self._final = final_exit_codes or {}
        self._start = start
        self._expected_exit_codes = expected_exit_codes
        self._deaths = 0
        self._due: float | None = 0.0
        self._started = 0.0
        self.process: BaseProcess | None = None

    def poll(self, notify: Callable[[str], None]) -> None:
        """Restart the process if it has died, as soon as that is due.

        Raises:
            FednnUNetError: it has ended for good.
        """
        now = time.monotonic()
        if self.process is not None and not self.process.is_alive():
            code, self.process = self.process.exitcode, None
            if code is not None and code in self._final:
                self._due = None
                raise self._final[code]
            if code in self._expected_exit_codes:
                self._due = now
            else:
                self._restart_later(now, f"ended ({_exit_text(code)})", notify)
        if self.process is None and self._due is not None and now >= self._due:
            self._started = now
            try:
                self.process = self._start()
            except (EOFError, ConnectionError) as error:  # the process that it is forked from has been killed
                self._restart_later(now, f"could not be started ({type(error).__name__})", notify)

    def _restart_later(self, now: float, what: str, notify: Callable[[str], None]) -> None:
        if now - self._started > STEADY_SECONDS:
            self._deaths = 0
        pause = PAUSES[min(self._deaths, len(PAUSES) - 1)]
        self._deaths += 1
        self._due = now + pause
        notify(f"the {self.name} {what}; it is restarted{f' in {pause:g} s' if pause else ''}")

    def end(self) -> None:
        """End the process and its children."""
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


def supervise(
    processes: Sequence[SupervisedProcess], ended: threading.Event, notify: Callable[[str], None]
) -> Iterator[None]:
    """Keep processes alive until ``ended`` is set, then end them; yields after each poll.

    Args:
        processes: started in this order, and ended in reverse order.
        ended: set by a signal.
        notify: gets a line for the operator when a process has died.

    Raises:
        FednnUNetError: one of them has ended for good.
    """
    try:
        while not ended.is_set():
            for process in processes:
                process.poll(notify)
            yield
            wait([each.process.sentinel for each in processes if each.process is not None], POLL_SECONDS)
    finally:
        for process in reversed(processes):
            process.end()


def ended_by_signal() -> threading.Event:
    """An event that Ctrl-C, SIGTERM and the end of the terminal set (unless ``nohup`` has ruled that out)."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN or number is not signal.SIGHUP:
            signal.signal(number, lambda *_: ended.set())
    return ended


def terminal() -> Callable[[str], None]:
    """A function that prints a line to this process's present output, also after :func:`log_to`."""
    output, encoding = os.dup(1), sys.stdout.encoding or "ascii"

    def print_line(text: str) -> None:
        line = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {text}\n"
        with contextlib.suppress(OSError):  # closed, or full
            os.write(output, line.encode(encoding, PLAINER))

    return print_line


class _Lines(logging.Handler):
    """Prints a line per record, without a traceback; the same line again after a minute at the earliest."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._print_line = print_line
        self._printed: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        line = one_line(record.getMessage())
        if record.created - self._printed.get(line, 0.0) >= REPEAT_SECONDS:
            self._printed = {line: record.created}
            self._print_line(line)


def show_warnings(print_line: Callable[[str], None]) -> None:
    """Print this project's warnings and errors, which go to a log otherwise, for the operator."""
    logging.getLogger("fednnunet").addHandler(_Lines(print_line))


def log_to(path: Path) -> None:
    """Append everything that this process logs and prints to a file."""
    redirect_output(path, 0o600)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr, force=True)


def log_and_notify(path: Path) -> Callable[[str], None]:
    """Log to a file as :func:`log_to` does.

    Args:
        path: takes what this process and its libraries log and print.

    Returns:
        A function that gives the operator a line: on the terminal, and in the log.
    """
    print_line = terminal()
    log_to(path)

    def notify(text: str) -> None:
        log.warning("%s", text)
        print_line(text)

    return notify


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
