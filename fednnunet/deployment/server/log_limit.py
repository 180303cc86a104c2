"""A log that strangers cannot fill: of each cause it takes a few lines an hour, and counts the others."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

LINES = 20
"""Lines of one cause in a period."""
PERIOD_S = 3600.0
MAX_CAUSES = 200
"""Causes that are told apart in a period; all others are one."""


@dataclass
class _Count:
    since: float
    lines: int = 0


class LogLimit(logging.Filter):
    """Lets through :data:`LINES` lines of each cause in :data:`PERIOD_S`; the last of them says that more may follow.

    The cause of a line is its attribute ``cause``, or else its logger and its text before values are filled in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[object, _Count] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        now, cause = time.monotonic(), _cause(record)
        if cause not in self._counts and len(self._counts) >= MAX_CAUSES:
            self._counts = {key: count for key, count in self._counts.items() if now - count.since < PERIOD_S}
            cause = cause if len(self._counts) < MAX_CAUSES else "other causes"
        count = self._counts.setdefault(cause, _Count(now))
        if now - count.since >= PERIOD_S:
            if count.lines > LINES:
                _append(record, f"{count.lines - LINES} lines like this were left out since the last one")
            count.since, count.lines = now, 0
        count.lines += 1
        if count.lines == LINES:
            _append(record, f"more lines like this are left out for {PERIOD_S / 60:.0f} min")
        return count.lines <= LINES


def limit_log() -> None:
    """Limit all that this process logs."""
    for logger in (logging.getLogger(), *map(logging.getLogger, ("flwr", "uvicorn"))):
        for handler in logger.handlers:
            handler.addFilter(LogLimit())


def _cause(record: logging.LogRecord) -> object:
    if (cause := getattr(record, "cause", None)) is not None:
        return cause
    text = str(record.msg)
    if not any(sign.isalpha() for sign in text.replace("%s", "")):  # a text that is a value itself
        text = record.getMessage()
    kind = record.exc_info[0] if record.exc_info else None
    return record.name, kind, text.partition("\n")[0][:100]


def _append(record: logging.LogRecord, note: str) -> None:
    record.msg, record.args = f"{record.getMessage()} ({note})", ()
