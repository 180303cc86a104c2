"""The database of the SuperLink, ``state.db``: opened, or said to be damaged; a full disk is told as such.

What is in it can be lost: runs go on from their own folders, and nodes are registered from the keys.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, HTTPException
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection

from fednnunet import files
from fednnunet.deployment.server.flower_superlink import superlink_app, use_object_store
from fednnunet.deployment.server.object_files import ObjectFiles
from fednnunet.deployment.server.object_store import FileObjectStore
from fednnunet.deployment.server.operator_client import DATABASE
from fednnunet.errors import ConfigError
from fednnunet.files import has_free_space

log = logging.getLogger(__name__)

PAGE_BYTES = 2**15
"""Of a new database; an object below 64 KiB, which is stored here, takes two pages, in place of 16."""
LOG_BYTES = 4 * 2**20
"""How long SQLite's write-ahead log grows before it is copied into the database; 1000 pages by default."""
LOCK_SECONDS = 60
"""How long a request waits for others' writes; after Python's own 5 s, a busy server's requests fail."""
DISK_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""SQLite's error codes for a full disk."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM)
"""SQLite's primary error codes for what may be over at the next start."""


def open_database(state: Path, auth: bool) -> FastAPI:
    """A SuperLink on the database in ``state``, which is made if it does not exist.

    Args:
        state: the server's folder.
        auth: whether nodes need a registered key.

    Raises:
        ConfigError: the database cannot be used; the log says why.
    """
    if not event.contains(Engine, "connect", _set_up):
        event.listen(Engine, "connect", _set_up)
    try:
        _create_with_large_pages(state / DATABASE)
        app = superlink_app(state / DATABASE, auth=auth)
        use_object_store(app, FileObjectStore(state / DATABASE, ObjectFiles(state)))
        app.state.linkstate_factory.state()
    except HTTPException:  # a full disk, by :func:`watch_errors`
        raise
    except OSError as error:  # of files beside the database
        if error.errno in files.DISK_FULL:
            raise
        log.exception("%s cannot be used", state)
        raise ConfigError(f"{error.filename or state} cannot be used: {error.strerror}") from error
    except (Exception, SystemExit) as error:
        if _primary_code(getattr(error, "orig", error)) in PASSING:
            raise
        log.exception("%s cannot be opened", state / DATABASE)
        raise ConfigError(f"{state / DATABASE} cannot be used") from error
    return app


def _create_with_large_pages(database: Path) -> None:
    """Make the file, whose size of pages never changes after; an existing one keeps what it has."""
    if database.exists():
        return
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")


def _set_up(connection: DBAPIConnection, _: object) -> None:
    """Wait for locks; as many bytes of log as with small pages, since the disk has to hold them beside the database."""
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
        (page_bytes,) = cursor.execute("PRAGMA page_size").fetchone()
        cursor.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // page_bytes}")


def watch_errors(state: Path, end: Callable[[], object]) -> Callable[[ExceptionContext], None]:
    """Answer requests that fail on a full disk with status 507, and end where the database turns out to be damaged.

    Flower answers each of them with "internal server error".

    Args:
        state: the server's folder.
        end: called once, for a damaged database.

    Returns:
        The listener, which is registered for all engines of SQLAlchemy.
    """
    has_ended = False

    def on_error(context: ExceptionContext) -> None:
        nonlocal has_ended
        error = context.original_exception
        if is_disk_full(error, state):
            raise HTTPException(507, f"the disk of the server's state is full; make room at {state}")
        if _primary_code(error) in DAMAGED and not has_ended:
            has_ended = True
            log.error("%s is damaged: %s", state / DATABASE, error)
            end()

    event.listen(Engine, "handle_error", on_error)
    return on_error


def is_disk_full(error: BaseException | None, state: Path) -> bool:
    """Whether an error of SQLite means that the disk is full, or a quota used up, of which it does not say so."""
    code = getattr(error, "sqlite_errorcode", None)
    return code in DISK_FULL or (code == sqlite3.SQLITE_IOERR_WRITE and not has_free_space(state))


def _primary_code(error: BaseException | None) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
