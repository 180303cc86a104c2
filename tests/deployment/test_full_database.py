"""Which errors of the server's database mean that its disk is full."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fednnunet.deployment.server.superlink import is_disk_full

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "space", "expected"),
    [
        (sqlite3.SQLITE_FULL, True, True),
        (sqlite3.SQLITE_IOERR_WRITE, False, True),  # a quota: SQLite knows no more than that it could not write
        (sqlite3.SQLITE_IOERR_WRITE, True, False),  # a broken disk
        (sqlite3.SQLITE_BUSY, False, False),
        (None, False, False),
    ],
)
def test_a_used_up_quota_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, code: int | None, space: bool, expected: bool
) -> None:
    monkeypatch.setattr("fednnunet.deployment.server.superlink.has_free_space", lambda state: space)
    error = sqlite3.OperationalError("disk I/O error")
    if code is not None:
        error.sqlite_errorcode = code
    assert is_disk_full(error, Path("state")) is expected
