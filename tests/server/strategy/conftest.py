"""Fixtures of the tests of strategies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flwr.clientapp import ClientApp

from fednnunet.server.local_grid import LocalGrid


@pytest.fixture
def empty_grid() -> Iterator[LocalGrid]:
    """A grid without nodes: Flower's messages need one to be there."""
    grid = LocalGrid(ClientApp(), {}, 1)
    yield grid
    grid.close()
