"""A federation of real processes, and the training that it must come to the same result as.

Both are started once: files that use them are in the group ``deployed`` of pytest-xdist.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployed_federation import Federation, running, train_locally, write_centres

OPTIONS = ("strategy=ffe", "trainer.epochs=4")


@pytest.fixture(scope="package")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the centres' datasets."""
    raw = tmp_path_factory.mktemp("data") / "raw"
    write_centres(raw)
    return raw


@pytest.fixture(scope="package")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the training with ``OPTIONS`` on the local grid."""
    run = tmp_path_factory.mktemp("local") / "run"
    train_locally(raw, run, *OPTIONS)
    return run


@pytest.fixture(scope="package")
def federation(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Server and all nodes, up; a test that kills or stops any of them leaves it as it was."""
    with running(Federation(tmp_path_factory.mktemp("federation"), raw)) as federation:
        yield federation
