"""Write files so that no reader and no crash ever finds half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers for a full disk, or a quota that is used up."""
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Error numbers for files that may not be written."""


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: at any moment it is the old file or the new one. Creates its folder."""
    with _partial(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, as :func:`write_atomically` does."""
    with _partial(path) as partial:
        partial.write_bytes(content)


def write_private(path: Path, content: bytes) -> None:
    """Replace ``path`` as :func:`write_atomically` does; only its owner can ever read it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with _partial(path) as partial, os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
        file.write(content)


def append_atomically(path: Path, text: str) -> None:
    """Add ``text`` to a file, or nothing of it where the disk is full."""
    with path.open("ab", buffering=0) as file:  # a buffer would try again, with the rest, when the file is closed
        before = file.tell()
        try:
            rest = text.encode()
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            os.truncate(file.fileno(), before)
            raise


def write_arrays(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Replace ``path`` by an ``.npz`` of ``arrays``, as :func:`write_atomically` does."""
    save = np.savez_compressed if compressed else np.savez
    with _partial(path) as partial, partial.open("wb") as file:
        save(file, **arrays)


def archive_damage(path: Path) -> str | None:
    """What is wrong with an archive (``.npz``, a checkpoint of torch), by the checksums in it; None if it is sound."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, OSError, zlib.error) as error:
        return str(error)


def archive_digest(path: Path) -> str | None:
    """SHA-256 of names, sizes and checksums of what is in an archive, by which it is known; None for no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = [(one.filename, one.file_size, one.CRC) for one in archive.infolist()]
    except (zipfile.BadZipFile, OSError):
        return None
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_in_use(path: Path) -> bool:
    """Whether a file has another name, or another process has it open; also where the system does not tell."""
    try:
        with path.open("r+b") as file:
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # to be told of who opens it now; ignored
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # given to the only one that has it open
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return os.fstat(file.fileno()).st_nlink > 1
    except (AttributeError, OSError):
        return True


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Within it, what this process and its children make is readable by their user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def nearest_existing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def disk_full(path: Path) -> OSError:
    """The error for a file that a library could not write to its end, and did not raise one of its own for."""
    return OSError(errno.ENOSPC, "the disk is full, or a quota is reached", str(path))


def has_free_space(folder: Path, size: int = 2**20) -> bool:
    """Whether ``size`` bytes can be written in ``folder`` now."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\1" * size)
    except OSError as error:
        if error.errno in DISK_FULL:
            return False
        raise
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` for a library to write, which takes its place at the end, or is removed if that fails."""
    with _partial(path) as partial:
        yield partial


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write, which takes its place at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
