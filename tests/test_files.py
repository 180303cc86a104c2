"""Files of which a crash, or a full disk, leaves no half."""

from __future__ import annotations

import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fednnunet.files import append_atomically, write_atomically, write_private


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_what_there_is_no_room_for_is_not_appended_by_half(tmp_path: Path) -> None:
    file = tmp_path / "rounds.csv"
    append_atomically(file, "round,loss\n")
    with room_for(20), pytest.raises(OSError, match="large"):
        append_atomically(file, "1,0.123456789\n2,0.123456789\n")
    assert file.read_text() == "round,loss\n"
    append_atomically(file, "1,0.5\n")
    assert file.read_text() == "round,loss\n1,0.5\n"


def test_what_there_is_no_room_for_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "plans.json"
    write_atomically(file, "{}")
    with room_for(20), pytest.raises(OSError, match="large"):
        write_atomically(file, "x" * 100)
    assert file.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [file]


def test_a_private_file_takes_the_place_of_one_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "noise.key"
    file.write_text("old")
    file.chmod(0o644)
    write_private(file, b"new")
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
