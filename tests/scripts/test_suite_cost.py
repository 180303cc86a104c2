"""The figures of ``benchmarks/suite_cost.py``, from two small suites."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "suite_cost.py"
BUSY = "import time; end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"
SUITE = """
import subprocess, sys

def test_a_child_of_a_killed_process():
    busy = {busy!r}
    start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); print(flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", start, busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    parent.stdout.readline()
    parent.kill()

def test_outcome():
    assert {passes}
"""


def make_checkout(folder: Path, seconds: float, passes: bool = True) -> Path:
    """A suite of two tests; the first leaves a process behind that computes for so many seconds."""
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "Makefile").write_text("test:\n\t@echo checks\n\t@.venv/bin/python -m pytest -q -p no:cacheprovider\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(SUITE.format(busy=BUSY.format(seconds=seconds), passes=passes))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_processes_whose_parent_was_killed_count_and_failures_are_named(tmp_path: Path) -> None:
    old = make_checkout(tmp_path / "old", seconds=1.5)
    new = make_checkout(tmp_path / "new", seconds=0.1, passes=False)
    result = run(old, new, "--logs", tmp_path / "logs")
    assert result.returncode == 1
    assert "new: 1 failed, 1 passed; pytest failed with exit code 1" in result.stderr
    told = {figure["metric"]: figure for figure in map(json.loads, result.stdout.splitlines())}
    assert told["suite_old_failed"]["value"] == 0
    assert told["suite_new_failed"]["value"] == 1
    cpu = {name: told[f"suite_{name}_cpu"]["value"] for name in ("old", "new")}
    assert cpu["old"] > cpu["new"] + 0.8
    ratio = told["suite_cpu_new_over_old"]
    assert ratio["value"] == pytest.approx(cpu["new"] / cpu["old"], abs=0.01)
    assert ratio["target"] == 0.55


def test_a_checkout_without_an_environment_or_tests_is_named(tmp_path: Path) -> None:
    old = make_checkout(tmp_path / "old", seconds=0.1)
    (old / ".venv").unlink()
    assert f"{old}: there is no .venv" in run(old, old).stderr
    new = make_checkout(tmp_path / "new", seconds=0.1)
    (new / "Makefile").write_text("test:\n\t@echo none\n")
    assert "should run pytest once, and runs it 0 times" in run(new, new).stderr
