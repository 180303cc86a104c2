"""A model of the node's own: where it cannot be had, and what teaches it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import PersonalTraining
from fednnunet.node.personal_model import PersonalModel, PersonalModels


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


@pytest.mark.parametrize(("tie", "is_taught"), [(0.1, True), (0.0, False)])
def test_dittos_network_is_taught_by_what_teaches_the_shared_one(
    monkeypatch: pytest.MonkeyPatch, tie: float, is_taught: bool
) -> None:
    calls: list[Any] = []
    own: Any = SimpleNamespace(learn_from=lambda shared: calls.append(shared))
    trainer: Any = SimpleNamespace(
        pseudo_labels=own, network=None, current_epoch=1, on_train_start=lambda: calls.append("loaders")
    )
    settings: Any = SimpleNamespace(config=SimpleNamespace(compute=None), folder=None)
    fit = SimpleNamespace(run=lambda: calls.append("epoch"), free_gradients=lambda: None)
    monkeypatch.setattr("fednnunet.node.personal_model.FoldFit", lambda *_: fit)
    model, shared = PersonalModel(trainer, settings, tie), SimpleNamespace()
    model.train_epoch(1, {}, shared)  # type: ignore[arg-type]
    assert calls == [*[shared] * is_taught, "loaders", "epoch"], "before the loaders are built"


def test_what_is_fine_tuned_is_taught_by_what_it_starts_from() -> None:
    calls: list[str] = []
    trainer: Any = SimpleNamespace(pseudo_labels=SimpleNamespace(label_all=lambda: calls.append("all")))
    settings: Any = SimpleNamespace()
    PersonalModel(trainer, settings, 0.0).label_all()
    assert calls == ["all"]
    untaught: Any = SimpleNamespace()
    PersonalModel(untaught, settings, 0.0).label_all()
