"""Small disks that can be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

BLOCK = b"\0" * 2**16


@contextlib.contextmanager
def disk_at(folder: Path, mebibytes: float) -> Iterator[Path]:
    """A file system of this size in memory at ``folder``; it can be mounted by root alone, others skip the test."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(mebibytes * 2**20)}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"needs mount: {error}")
    if done.returncode:
        pytest.skip(f"may not mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(disk: Path, leave: int = 0) -> Iterator[None]:
    """No room on ``disk`` but ``leave`` bytes; a file that is removed at the end takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):  # it is full
            while file.write(BLOCK):
                pass
        os.truncate(file.fileno(), max(0, file.tell() - leave))
    try:
        yield
    finally:
        ballast.unlink()
