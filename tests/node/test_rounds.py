"""Rounds that a node refuses before it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import TrainRequest
from fednnunet.node.rounds import check_steps

pytestmark = pytest.mark.unit
TRAINER: Any = SimpleNamespace(num_epochs=10, num_iterations_per_epoch=25)


@pytest.mark.parametrize(
    ("server_round", "epochs", "steps"),
    [(1, 1, 25), (1, 2, 50), (5, 2, 50), (3, 4, 50), (4, 3, 25), (1, 100, 250)],
)
def test_a_round_of_fewer_steps_than_the_node_allows_is_refused(server_round: int, epochs: int, steps: int) -> None:
    """Rounds 3 of 4 epochs and 4 of 3 epochs are the last ones, with two epochs and one left."""
    body = TrainRequest(server_round=server_round, epochs=epochs, layers=[])
    check_steps(TRAINER, body, 0)
    check_steps(TRAINER, body, steps)
    with pytest.raises(ConfigError, match=f"^round {server_round} has {steps} training steps, and privacy.least_steps"):
        check_steps(TRAINER, body, steps + 1)
