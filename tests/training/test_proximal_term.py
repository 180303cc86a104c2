"""The term that pulls layers towards others, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.training.module import NNUNetModule


@pytest.fixture
def module() -> NNUNetModule:
    """A network of one weight, 2, and one bias, 1."""
    trainer: Any = nnUNetTrainer.__new__(nnUNetTrainer)
    trainer.network = nn.Linear(1, 1)
    nn.init.constant_(trainer.network.weight, 2.0)
    nn.init.constant_(trainer.network.bias, 1.0)
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.1)
    return NNUNetModule(trainer)


def step(module: NNUNetModule) -> tuple[float, float]:
    """Weight and bias after a step for the image 1 and the loss (2 * 1 + 1 - 2.5)^2, whose gradients are 1."""
    network: Any = module.network
    module.nnunet.optimizer.zero_grad(set_to_none=True)
    ((network(torch.ones(1, 1)) - 2.5) ** 2).sum().backward()
    module.on_before_optimizer_step(module.nnunet.optimizer)
    module.nnunet.optimizer.step()
    return network.weight.item(), network.bias.item()


def test_a_tie_adds_lambda_times_the_distance_to_the_gradient(module: NNUNetModule) -> None:
    """v <- v - eta (grad F(v) + lambda (v - w)): 2 - 0.1 (1 + 0.4 (2 - 0.5)) = 1.84; the bias has no w."""
    averages = torch.tensor([[0.5]])
    module.set_proximal_term({"weight": averages, "of another network": torch.zeros(3)}, 0.4)
    averages.fill_(100.0)  # the memory that it came in is used again
    assert step(module) == pytest.approx((1.84, 0.9))


def test_a_weight_of_zero_is_no_term(module: NNUNetModule) -> None:
    module.set_proximal_term({"weight": torch.tensor([[0.5]])}, 0.4)
    module.set_proximal_term({"weight": torch.tensor([[0.5]])}, 0.0)
    assert step(module) == pytest.approx((1.9, 0.9))
