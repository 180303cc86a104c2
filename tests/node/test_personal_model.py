"""A model of the node's own, where it cannot be had."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import PersonalTraining
from fednnunet.node.personal_model import PersonalModels


@pytest.mark.parametrize(
    ("asked", "key"),
    [(PersonalTraining(fine_tune_epochs=3), "fine_tune_epochs"), (PersonalTraining(tie=0), "ditto_lambda")],
)
def test_a_node_that_trains_on_several_devices_refuses_it(asked: PersonalTraining, key: str) -> None:
    nothing: Any = SimpleNamespace()
    ranks: Any = SimpleNamespace(size=2)
    with pytest.raises(ConfigError, match=rf"^strategy\.{key}: .*compute\.num_devices=2; set it to 1$"):
        PersonalModels(asked, nothing, nothing, {}, torch.device("cpu"), ranks)
    ranks.size = 1
    PersonalModels(asked, nothing, nothing, {}, torch.device("cpu"), ranks)


@pytest.mark.parametrize("fields", [{}, {"fine_tune_epochs": 2, "tie": 0.1}, {"tie": -1}, {"learning_rate": 0.1}])
def test_a_server_asks_for_one_model_or_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="PersonalTraining"):
        PersonalTraining(**fields)
