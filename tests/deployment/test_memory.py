"""Freed buffers are used again by processes that pass messages on."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from fednnunet.deployment.memory import keep_freed_buffers

FAULTS = """
import resource
from fednnunet.deployment.memory import keep_freed_buffers

def faults(times):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        buffers = [b"x" * (5 * 2**20) for _ in range(6)]
        del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

before = faults(5)
print(keep_freed_buffers(), before, faults(1) and faults(5))
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)


@pytest.mark.unit
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone is set")
def test_freed_buffers_of_chunks_are_used_again() -> None:
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=os.environ)
    was_set, before, after = ran.stdout.split()
    assert was_set == "True"
    assert int(after) < int(before) / 20


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "value"),
    [("GLIBC_TUNABLES", "glibc.malloc.arena_max=2"), ("MALLOC_ARENA_MAX", "2"), ("MALLOC_TRIM_THRESHOLD_", "1")],
)
def test_the_users_own_settings_are_kept(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("malloc was set"))
    assert not keep_freed_buffers()


@pytest.mark.unit
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_buffers()
