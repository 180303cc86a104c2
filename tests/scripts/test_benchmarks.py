"""Benchmarks end with figures; benchmarks and experiments import what exists."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for folder in ("benchmarks", "experiments") for path in (ROOT / folder).rglob("*.py"))
OWN_PACKAGES = {"fednnunet", "tests"}

INTEGRATION, DEPLOYMENT, NIGHTLY = pytest.mark.integration, pytest.mark.deployment, pytest.mark.nightly
SMALLEST = {
    "aggregation.py": ("--nodes 2", INTEGRATION),
    "bytes_per_round.py": ("--tiny --rounds 1 --steps 1", NIGHTLY),
    "deployment_overhead.py": ("--nodes 1 --rounds 1 --stages 2 --dtype int4", DEPLOYMENT),
    "gpu_check.py": ("--device cpu --only turns", INTEGRATION),
    "local_updates.py": ("--tiny", NIGHTLY),
    "many_links.py": ("--links 1 --rounds 1 --stragglers 0", NIGHTLY),
    "many_nodes.py": ("--nodes 2 --parts demo", NIGHTLY),
    "predict.py": ("--cases 1 --size 6,40,40 --configurations 2d", NIGHTLY),
    "plans_of_shared_fingerprints.py": ("--federations 1", NIGHTLY),
    "privacy.py": ("--nodes 4 --rounds 2 --stages 3", INTEGRATION),
    "round_overhead.py": ("--nodes 1 --rounds 1 --stages 2", INTEGRATION),
    "thin_line.py": ("--rounds 1 --stages 2 --mbit 100", NIGHTLY),
    "training_loop.py": ("--pairs 1 --epochs 1", NIGHTLY),
    "training_with_noise.py": ("--seeds 1 --tiny", NIGHTLY),
}
"""Arguments for the smallest measurement, and the level of a test that makes it."""
IN_THIS_PROCESS = ("aggregation.py", "privacy.py", "round_overhead.py")
"""Those that set nothing for the whole process; others start in their own, as ``make benchmarks`` starts them."""
TOO_LONG = ["soak.py", "suite_cost.py"]
SECONDS = 600


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a benchmark as a script in this process, which has imported torch and nnU-Net already; what it prints."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        for name in os.environ:
            monkeypatch.setenv(name, os.environ[name])  # what the script sets is undone
        with pytest.raises(SystemExit) if "--help" in arguments else contextlib.nullcontext():
            runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def run(script: str, *arguments: str) -> str:
    """What a benchmark prints, as ``make benchmarks`` starts it: in an environment that is not activated."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    process = subprocess.Popen(
        [sys.executable, f"benchmarks/{script}", *arguments],
        cwd=ROOT,
        env={**environment, "PATH": os.defpath},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = process.communicate(timeout=SECONDS)
    finally:
        process.terminate()  # it ends what it has started
    assert process.returncode == 0, errors[-4000:]
    return printed


def figures_in(printed: str) -> list[dict[str, object]]:
    """The lines of JSON at the end of what a benchmark printed."""
    lines = printed.splitlines()
    figures = [json.loads(line) for line in lines if line.startswith("{")]
    assert lines[-1:] == [line for line in lines if line.startswith("{")][-1:], "a table follows the figures"
    return figures


def test_each_benchmark_is_started() -> None:
    found = [script for script in SCRIPTS if script.parent == ROOT / "benchmarks"]
    scripts = {script.name for script in found if 'if __name__ == "__main__":' in script.read_text()}
    assert scripts == {*SMALLEST, *TOO_LONG}


@pytest.mark.parametrize(
    ("script", "arguments"),
    [pytest.param(script, arguments, marks=level) for script, (arguments, level) in SMALLEST.items()],
)
def test_a_benchmark_ends_with_its_figures(script: str, arguments: str, run_here: Callable[..., str]) -> None:
    start = run_here if script in IN_THIS_PROCESS else run
    figures = figures_in(start(script, *arguments.split()))
    assert figures
    assert len({figure["metric"] for figure in figures}) == len(figures)
    for figure in figures:
        value, target = figure["value"], figure["target"]
        assert isinstance(value, int | float)
        assert math.isfinite(value)
        assert target is None or isinstance(target, int | float)
        assert figure["unit"]


@pytest.mark.parametrize("script", TOO_LONG)
@pytest.mark.integration
def test_a_benchmark_that_cannot_be_short_says_what_it_takes(script: str, run_here: Callable[..., str]) -> None:
    assert "--" in run_here(script, "--help")


def file_of(module: str) -> Path | None:
    """Source of a module of this repository; None if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def names_of(file: Path) -> frozenset[str]:
    """Names that a module defines or imports at its top level, also under ``if`` and ``try``."""
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            nodes += ast.iter_child_nodes(node)
    return frozenset(names)


def missing_imports(source: str) -> Iterator[str]:
    """What ``source`` imports of this repository's packages that does not exist, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OWN_PACKAGES and file_of(alias.name) is None:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OWN_PACKAGES:
            file = file_of(node.module)
            for alias in node.names:
                is_module = file_of(f"{node.module}.{alias.name}") is not None
                if not is_module and (file is None or alias.name not in names_of(file)):
                    yield f"{node.module}.{alias.name}"


def test_missing_imports_are_found() -> None:
    source = """
import fednnunet.elsewhere, fednnunet.files, numpy
from fednnunet import errors
from fednnunet.errors import ConfigError, TaskError
from fednnunet.files import DISK_FULL
def main():
    from fednnunet.gone import anything
"""
    missing = ["fednnunet.elsewhere", "fednnunet.errors.TaskError", "fednnunet.gone.anything"]
    assert sorted(missing_imports(source)) == missing


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_of_a_script_exist(script: Path) -> None:
    assert list(missing_imports(script.read_text(encoding="utf-8"))) == []
