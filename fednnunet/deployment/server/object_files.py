"""Contents of large objects as files beside the SuperLink's database, each named by its SHA-256.

Flower keeps them in the database: SQLite writes each byte to its log, then to its pages, waits for the disk each time,
and collects what it reads from pages again. A file is written once, to memory that the system writes back when it has
time; most are gone by then. What outlives a killed process is the same: a file is whole when it has its name. After a
power failure, files that are damaged are found at the start, and their objects are asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fednnunet.errors import ConfigError

FOLDER = "objects"
LEAST_BYTES = 2**16
"""Smaller contents stay in the database."""
ID = re.compile("[0-9a-f]{64}")
OURS = re.compile(r"[0-9a-f]{64}(\.[0-9]+\.[0-9a-f]{8}\.partial)?")
"""Names of files that are made here."""
PIECE_BYTES = 2**20


class ObjectFiles:
    """Files of a folder that is their user's alone.

    Args:
        state: the server's folder, in which theirs is made.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def write(self, object_id: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write the content of an object, whose SHA-256 the caller knows to be its id; does nothing where it is there.

        Raises:
            OSError: the disk is full, or cannot be written.
            ConfigError: as :meth:`stage`.
        """
        if self.exists(object_id):
            return
        partial = self.stage(object_id, parts)
        try:
            self.take(partial, object_id)
        finally:
            partial.unlink(missing_ok=True)

    def stage(self, object_id: str, parts: Iterable[bytes | memoryview]) -> Path:
        """Write the content of an object to a file of another name, by which nobody reads it; see :meth:`take`.

        Raises:
            OSError: the disk is full, or cannot be written; nothing is left.
            ConfigError: the folder is another user's, who could not read the file.
        """
        path = self._path(object_id)
        partial = path.with_name(f"{object_id}.{os.getpid()}.{os.urandom(4).hex()}.partial")
        self.make_folder()
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
                if os.fstat(file.fileno()).st_uid != self._folder.stat().st_uid:
                    raise ConfigError(f"{self._folder} belongs to the server's user; use this user")
                for part in parts:
                    rest = memoryview(part)
                    while rest:
                        rest = rest[file.write(rest) :]
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return partial

    def take(self, partial: Path, object_id: str) -> None:
        """Give a file of :meth:`stage` the name by which it is read."""
        os.replace(partial, self._path(object_id))

    def make_folder(self) -> None:
        """Make the folder; the server does before anybody else can."""
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def read(self, object_id: str) -> bytes | None:
        """Content of an object; None where there is no file of it."""
        if not ID.fullmatch(object_id):
            return None
        try:
            return self._path(object_id).read_bytes()
        except FileNotFoundError:
            return None

    def exists(self, object_id: str) -> bool:
        """Whether there is a file of an object."""
        return ID.fullmatch(object_id) is not None and self._path(object_id).exists()

    def is_sound(self, object_id: str) -> bool:
        """Whether there is a file of an object whose content has the id as its SHA-256."""
        if not ID.fullmatch(object_id):
            return False
        digest = hashlib.sha256()
        try:
            with self._path(object_id).open("rb", buffering=0) as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
        except FileNotFoundError:
            return False
        return digest.hexdigest() == object_id

    def remove(self, object_id: str) -> None:
        """Remove the file of an object, if there is one."""
        if ID.fullmatch(object_id):
            with contextlib.suppress(FileNotFoundError):
                self._path(object_id).unlink()

    def keep_only(self, object_ids: Iterable[str]) -> set[str]:
        """Remove files of other objects, damaged ones and halves; returns the ids of those that are left.

        What was not made here, as the ``lost+found`` of a disk of its own, stays.
        """
        wanted = set(object_ids)
        kept = set()
        for path in self._files():
            if not OURS.fullmatch(path.name):
                continue
            if path.name in wanted and self.is_sound(path.name):
                kept.add(path.name)
            else:
                path.unlink(missing_ok=True)
        return kept

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from self._folder.iterdir()

    def _path(self, object_id: str) -> Path:
        if not ID.fullmatch(object_id):
            raise ValueError("an object's id is its SHA-256")
        return self._folder / object_id
