"""A waiting node's tensors leave the device and come back as the same objects with the same bits."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from fednnunet.training.parking import ParkedTrainer


def trained(seed: int = 0) -> SimpleNamespace:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    trainer = SimpleNamespace(
        network=network, loss=nn.MSELoss(), optimizer=optimizer, grad_scaler=None, device=torch.device("cpu")
    )
    step(trainer)
    return trainer


def step(trainer: SimpleNamespace) -> None:
    trainer.optimizer.zero_grad()
    trainer.network(torch.ones(2, 1, 8, 8).cumsum(-1)).square().sum().backward()
    trainer.optimizer.step()


def tensors(trainer: SimpleNamespace) -> list[torch.Tensor]:
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    return [*trainer.network.parameters(), *trainer.network.buffers(), *momentum]


def test_tensors_stay_the_same_objects_with_the_same_bits_in_other_memory():
    trainer = trained()
    before = tensors(trainer)
    bits, memory = [one.detach().clone() for one in before], [one.data_ptr() for one in before]
    parked = ParkedTrainer(trainer)
    assert all(one.data_ptr() != place for one, place in zip(before, memory, strict=True))
    assert all(parameter.grad is None for parameter in trainer.network.parameters())
    parked.restore()
    after = tensors(trainer)
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(after, bits, strict=True))


def test_training_goes_on_after_parking_as_without_it():
    parked, undisturbed = trained(), trained()
    ParkedTrainer(parked).restore()
    for trainer in (parked, undisturbed):
        step(trainer)
    assert all(torch.equal(one, other) for one, other in zip(tensors(parked), tensors(undisturbed), strict=True))
