"""Tests that share what takes long to make run in one process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def scheduler(pytestconfig: pytest.Config) -> Any:
    """What pytest-xdist is given to hand out tests."""
    options: Any = SimpleNamespace(getvalue=pytestconfig.getvalue, option=pytestconfig.option)
    options.getvalue = {"tx": ["popen", "popen"], "maxschedchunk": None}.get
    return pytestconfig.hook.pytest_xdist_make_scheduler(config=options, log=None)


@pytest.mark.parametrize(
    ("ids", "group"),
    [
        (["tests/test_lock.py::test_a", "tests/test_lock.py::test_b[x::y]"], "tests/test_lock.py"),
        (["tests/integration/test_audit.py::test_a", "tests/integration/test_folds.py::test_b"], "finished"),
        (["tests/deployment/test_kills.py::test_a", "tests/deployment/test_faults.py::test_b"], "deployed"),
    ],
)
def test_a_file_or_the_files_that_name_a_group_are_handed_out_together(
    scheduler: Any, ids: list[str], group: str
) -> None:
    assert {scheduler._split_scope(one) for one in ids} == {group}
