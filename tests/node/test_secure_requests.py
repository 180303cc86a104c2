"""What a server does not get where layers are summed securely, whatever it asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import SendModelRequest, TrainReply, TrainRequest
from fednnunet.node.noise import NodeRounds
from fednnunet.node.training_session import TrainingSession
from fednnunet.node.worker import NodeWorker


def session_after_a_round(tmp_path: Path, **stages: Any) -> TrainingSession:
    """A node that has finished round 2, for which its weight was asked."""
    trainer = SimpleNamespace(fold=0, num_epochs=5, network=nn.Linear(2, 1), output_folder=str(tmp_path))
    node: Any = SimpleNamespace(trainer=trainer, **{"noise": None, "secure": None, **stages})
    session = TrainingSession(SimpleNamespace(name="Oslo", same_machine=True), node, wait_for_round=lambda: False)  # type: ignore[arg-type]
    session._finished_round, session._asked_for = 2, ["weight"]
    session._reply = TrainReply(server_round=2, num_examples=1)
    return session


@pytest.mark.parametrize("protection", ["secure", "noise"])
def test_initial_layers_stay_once_a_round_was_trained(tmp_path: Path, protection: str) -> None:
    """As the answer to a request for them, the trained ones would leave in clear."""
    session = session_after_a_round(tmp_path, **{protection: SimpleNamespace()})
    request: Any = SimpleNamespace(reply=lambda *_: pytest.fail("it was answered"))
    with pytest.raises(ProtocolError, match="the initial layers were asked for after a round"):
        session.train(request, TrainRequest(server_round=0, trained=9, layers=["weight"]))


def test_layers_that_noise_does_not_hide_stay(tmp_path: Path) -> None:
    """A round that is asked for again has noise on the layers alone that it was trained for."""
    session = session_after_a_round(tmp_path, noise=NodeRounds.__new__(NodeRounds))
    sent: list[str] = []
    request: Any = SimpleNamespace(
        reply=lambda _, arrays: sent.extend(arrays.spec), fail=lambda failure: sent.append(failure.reason)
    )
    for layers in (["weight"], ["weight", "bias"]):
        session.train(request, TrainRequest(server_round=2, trained=2, layers=layers))
    assert sent == ["weight", "node Oslo: layer bias was not asked for when the round was trained, and has no noise"]


def test_final_models_stay() -> None:
    worker = NodeWorker.__new__(NodeWorker)
    worker.stages = SimpleNamespace(secure=SimpleNamespace())  # type: ignore[assignment]
    request: Any = SimpleNamespace()
    with pytest.raises(ProtocolError, match="the model of a node, which stays there"):
        worker._exchange_models(request, SendModelRequest(fold=0, layers=["weight"]))
