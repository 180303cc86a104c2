"""Benchmarks and experiments import what exists; most of them are too long to run in a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for folder in ("benchmarks", "experiments") for path in (ROOT / folder).rglob("*.py"))
OWN_PACKAGES = {"fednnunet", "tests"}


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
