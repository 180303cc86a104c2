"""Append lines to a file so that a line that is changed or removed later is noticed: each has the digest of the last.

A crash or a full disk can tear the last line. The next append cuts it off, and continues from the last whole line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 16


def digest_of(line: bytes) -> str:
    """Digest of a line without its end of line, which the next line carries."""
    return hashlib.sha256(line).hexdigest()


def append_line(path: Path, line_after: Callable[[str | None, int], bytes], last: str | None = None) -> str:
    """Append a line, and wait until it is on the disk; where the file system has locks, one process at a time.

    Args:
        path: file; created with mode 0600 where it does not exist.
        line_after: the line, without an end, from the digest of the line before (None for the first), and the number
            of bytes of a torn line that were cut off.
        last: digest of the line that this process wrote last, which then counts instead of what the file ends with:
            that lines were cut off since then shows.

    Returns:
        Digest of the line.

    Raises:
        OSError: the file cannot be written; it is as before then, but for the torn line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        whole, torn = _tail(file)
        size = os.fstat(file).st_size - torn
        if torn:
            os.ftruncate(file, size)
        line = line_after(last or (digest_of(whole) if whole is not None else None), torn)
        try:
            rest = line + b"\n"
            while rest:  # one write, unless the disk is full: then the second one says so
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):  # left to the next append
                os.ftruncate(file, size)
            raise
    finally:
        os.close(file)
    return digest_of(line)


def _tail(file: int) -> tuple[bytes | None, int]:
    """The last whole line of ``file``, and the number of bytes after it."""
    start = os.fstat(file).st_size
    tail = b""
    while start and tail.count(b"\n") < 2:
        step = min(start, BLOCK)
        start -= step
        tail = os.pread(file, step, start) + tail
    lines, end, torn = tail.rpartition(b"\n")
    return (lines.rpartition(b"\n")[2] if end else None), len(torn)
