"""Files of a finished run, against the reference of outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("finished")
OUTPUTS = Path(__file__).parents[2] / "docs" / "reference" / "outputs.md"


def described_names() -> set[str]:
    """Names of files and folders in the reference, ``<…>`` as a wildcard."""
    names = {
        part
        for path in re.findall(r"`([^`\n]+)`", OUTPUTS.read_text())
        for part in re.sub(r"<[^>]+>", "*", path).split("/")
    }
    return names - {"", "*"}


def test_every_file_of_a_run_is_in_the_reference(finished: Callable[[str], Path]) -> None:
    run, names = finished("ffe"), described_names()
    folders = [run, *run.glob("nodes/*"), *run.glob("nodes/*/nnUNet_results/*/*"), *run.glob("nodes/**/fold_*")]
    written = {path for folder in folders for path in folder.iterdir() if folder != run / "nodes"}
    of_nodes = set(run.glob("nodes/*"))
    assert len(of_nodes) > 1
    unknown = {path for path in written - of_nodes if not any(fnmatch(path.name, name) for name in names)}
    assert not unknown
