"""A model of the node's own: where it cannot be had, and what teaches it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import PersonalTraining
from fednnunet.node.personal_model import PersonalModel, PersonalModels
from fednnunet.training.marginal_loss import MarginalLoss
from tests.training.test_distillation import Recorded
from tests.training.test_marginal_loss import UNIFORM, cross_entropy, same_logits


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


def test_it_is_taught_at_full_weight_by_what_it_starts_from_and_by_the_same_images_in_an_epoch_again() -> None:
    loss = MarginalLoss(cross_entropy(), [1], 4, None, distillation=1.0, distillation_every=4)
    trainer: Any = SimpleNamespace(loss=loss, network=Recorded(), current_epoch=0)
    settings: Any = SimpleNamespace()
    module: Any = SimpleNamespace(set_proximal_term=lambda *_: None)
    model = PersonalModel(trainer, settings, 0.0)
    distillation = loss.distillation
    assert distillation is not None
    model.start_epoch(module)
    assert distillation.teacher is None, "as of Ditto, which nothing teaches"
    model.keep_teacher()
    assert distillation.teacher is not None
    logits, every = same_logits(UNIFORM).repeat(4, 1, 1, 1), torch.ones(4, 1, 2, 2, dtype=torch.bool)
    whole = distillation.distance(logits, distillation.teacher.output.repeat(4, 1, 1, 1), every, every).item()
    seen = []
    for epoch in (0, 0, 1):
        trainer.current_epoch = epoch
        model.start_epoch(module)
        for _ in range(6):
            with distillation.of_images(torch.arange(4.0)[:, None, None, None]):
                assert distillation(logits, every, every).item() == pytest.approx(whole, abs=1e-4)
        seen.append(list(distillation.teacher.seen))
        distillation.teacher.seen.clear()
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize(("tie", "is_taught"), [(0.1, True), (0.0, False)])
def test_dittos_network_is_taught_by_what_teaches_the_shared_one(
    monkeypatch: pytest.MonkeyPatch, tie: float, is_taught: bool
) -> None:
    own, shared = (MarginalLoss(cross_entropy(), [1], 4, None, distillation=2.0) for _ in range(2))
    assert own.distillation is not None
    assert shared.distillation is not None
    shared.distillation.keep_teacher(Recorded(), epoch=1, epochs=4)
    trainer: Any = SimpleNamespace(loss=own, network=Recorded(), current_epoch=1, on_train_start=lambda: None)
    settings: Any = SimpleNamespace(config=SimpleNamespace(compute=None), folder=None)
    model, values = PersonalModel(trainer, settings, tie), []

    class Fit(SimpleNamespace):
        def __init__(self, *_: Any) -> None:
            super().__init__(free_gradients=lambda: None)

        def run(self) -> None:
            logits, every = same_logits(UNIFORM), torch.ones(1, 1, 2, 2, dtype=torch.bool)
            for one in (own.distillation, shared.distillation):
                assert one is not None
                with one.of_images(torch.zeros(1, 1, 1, 1)):
                    values.append(one(logits, every, every).item() if one.teaches else None)

    monkeypatch.setattr("fednnunet.node.personal_model.FoldFit", Fit)
    model.train_epoch(1, {}, shared.distillation)
    assert values[1] is not None
    assert values[0] == (values[1] if is_taught else None)
