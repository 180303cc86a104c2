"""What a server does not get where layers are summed securely, whatever it asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import SendModelRequest, TrainRequest
from fednnunet.node.training_session import TrainingSession
from fednnunet.node.worker import NodeWorker


def test_initial_layers_stay_once_a_round_was_trained(tmp_path: Path) -> None:
    """As the answer to a request for them, the trained ones would leave in clear."""
    trainer = SimpleNamespace(fold=0, num_epochs=5, network=nn.Linear(2, 1), output_folder=str(tmp_path))
    stages: Any = SimpleNamespace(trainer=trainer, noise=None, secure=SimpleNamespace())
    session = TrainingSession(SimpleNamespace(), stages, wait_for_round=lambda: False)  # type: ignore[arg-type]
    session._finished_round = 2
    request: Any = SimpleNamespace(reply=lambda *_: pytest.fail("it was answered"))
    with pytest.raises(ProtocolError, match="the initial layers were asked for after a round"):
        session.train(request, TrainRequest(server_round=0, trained=9, layers=["weight"]))


def test_final_models_stay() -> None:
    worker = NodeWorker.__new__(NodeWorker)
    worker.stages = SimpleNamespace(secure=SimpleNamespace())  # type: ignore[assignment]
    request: Any = SimpleNamespace()
    with pytest.raises(ProtocolError, match="the model of a node, which stays there"):
        worker._exchange_models(request, SendModelRequest(fold=0, layers=["weight"]))
