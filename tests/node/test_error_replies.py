"""What a server is told of a disk that is full, or cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fednnunet.exchange.messages import Kind
from fednnunet.node.error_replies import failure_of
from fednnunet.node.settings import NodeSettings

FULL = ("unavailable", "its disk is full; make room there")
READ_ONLY = ("config", "its work folder cannot be written (Read-only file system); make it writable")
TORCH = "[enforce fail at inline_container.cc:747] . open file failed with strerror: "


def system_error(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (system_error(errno.ENOSPC), FULL),
        (system_error(errno.EDQUOT), FULL),
        (RuntimeError(f"{TORCH}{os.strerror(errno.EDQUOT)}"), FULL),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), FULL),
        (system_error(errno.EROFS), READ_ONLY),
        (RuntimeError(f"{TORCH}{os.strerror(errno.EROFS)}\nframe #0: …"), READ_ONLY),
        (
            system_error(errno.EACCES, "/srv/oslo/requests.json"),
            ("config", "its work folder cannot be written (Permission denied); make it writable"),
        ),
        (system_error(errno.EACCES, "/data/image.nii.gz"), ("internal", "internal error in train")),
    ],
    ids=["full", "quota", "quota, torch", "full, torch", "read-only", "read-only, torch", "not allowed", "images"],
)
def test_a_disk_that_is_full_or_read_only_is_told_as_such(error: Exception, expected: tuple[str, str]) -> None:
    config: Any = None
    settings = NodeSettings("Oslo", Path("/srv/oslo"), {}, False, config, 1, same_machine=True)
    kind, reason = expected
    failure = failure_of(error, Kind.TRAIN, settings)
    assert failure.error == kind
    assert failure.reason.startswith(f"node Oslo: {reason}")
