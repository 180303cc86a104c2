"""What a request means for a fit that waits between two rounds."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import (
    EvaluateRequest,
    ScoreModelsRequest,
    SendModelRequest,
    TrainReply,
    TrainRequest,
)
from fednnunet.node import training_session
from fednnunet.node.fold_fit import NextStep
from fednnunet.node.rounds import OpenRound
from fednnunet.node.training_session import TrainingRequest, TrainingSession

START, STOP, IGNORE = NextStep.START, NextStep.STOP, NextStep.IGNORE


@pytest.fixture
def session(tmp_path: Path) -> TrainingSession:
    """Fold 0 of five epochs; round 2 is finished, and the checkpoint of round 1 is there."""
    for suffix in (".json", ".pth"):
        (tmp_path / f"checkpoint_round_1{suffix}").touch()
    trainer = SimpleNamespace(
        fold=0, num_epochs=5, num_iterations_per_epoch=3, network=nn.Linear(2, 1), output_folder=str(tmp_path)
    )
    stages: Any = SimpleNamespace(trainer=trainer, personal=None, noise=None)
    settings: Any = SimpleNamespace(config=SimpleNamespace(privacy=SimpleNamespace(least_steps=0)))
    session = TrainingSession(settings, stages, wait_for_round=lambda: NextStep.STOP)
    session._finished_round = 2
    return session


@pytest.mark.parametrize(
    ("body", "step"),
    [
        (TrainRequest(server_round=3, trained=2, layers=["weight"]), START),
        (TrainRequest(server_round=5, trained=2, layers=[]), START),  # rounds 3 and 4 were without this node
        (TrainRequest(server_round=2, trained=2, layers=["weight"]), IGNORE),  # its reply again
        (TrainRequest(server_round=1, trained=1, layers=[]), STOP),  # the server lost round 2
        (TrainRequest(server_round=1, trained=0, layers=[]), STOP),  # the server begins anew
        (TrainRequest(server_round=0, layers=["weight"]), STOP),  # it asks for the first values again
        (TrainRequest(server_round=1, trained=9, layers=[]), IGNORE),  # no checkpoint to resume from: refused
        (TrainRequest(fold=1, server_round=3, layers=[]), IGNORE),  # refused while fold 0 trains
        (EvaluateRequest(server_round=2), STOP),
        (EvaluateRequest(server_round=5), STOP),  # the rounds ended without this node
        (EvaluateRequest(server_round=1), IGNORE),
        (EvaluateRequest(fold=1, server_round=2), IGNORE),
        (SendModelRequest(fold=0, layers=["weight"]), IGNORE),
        (ScoreModelsRequest(fold=0, models={"Porto": [0]}), IGNORE),
    ],
    ids=str,
)
def test_a_request_between_two_rounds(session: TrainingSession, body: TrainingRequest, step: NextStep) -> None:
    assert session.next_step(body, {}) is step


def test_a_round_is_in_the_ledger_before_anything_of_it_leaves(
    session: TrainingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    reply = TrainReply(server_round=3, num_examples=5, train_loss=0.5)
    monkeypatch.setattr(training_session, "round_reply", lambda *_: reply)
    monkeypatch.setattr(training_session, "save_round", lambda *_: events.append("saved"))
    monkeypatch.setattr(session, "layers", SimpleNamespace(finish_round=lambda *_: {}))
    request: Any = SimpleNamespace(reply=lambda body, _: events.append(f"sent {json.loads(body)['train_loss']}"))
    session.stages.noise = SimpleNamespace(  # type: ignore[misc]
        finish_round=lambda *_: events.append("spent"), check_layers=lambda *_: None
    )
    session.stages.secure = None  # type: ignore[misc]
    current = OpenRound(request, TrainRequest(server_round=3, layers=[]), 0, loaded=0.0)
    session._finish_round(session.stages.trainer, current)  # type: ignore[arg-type]
    assert events == ["spent", "saved", "sent None"]

    def disk_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    session.stages.noise = SimpleNamespace(finish_round=disk_full)  # type: ignore[misc]
    with pytest.raises(OSError, match="No space left"):
        session._finish_round(session.stages.trainer, current)  # type: ignore[arg-type]
    assert len(events) == 3


@pytest.mark.parametrize(
    ("body", "arrays", "problem"),
    [
        (TrainRequest(server_round=6, layers=[]), {}, "round 6 was asked for; there are 5 epochs"),
        (TrainRequest(server_round=4, epochs=2, layers=[]), {}, "round 4 was asked for; there are 5 epochs"),
        (TrainRequest(server_round=3, layers=["gamma"]), {}, "layer gamma was asked for"),
        (TrainRequest(server_round=3, layers=[]), {"weight": np.zeros(3)}, "layer weight was received with shape"),
    ],
)
def test_a_round_that_cannot_be_trained_is_refused_before_it_starts(
    session: TrainingSession, body: TrainRequest, arrays: dict[str, np.ndarray], problem: str
) -> None:
    with pytest.raises(ProtocolError, match=problem):
        session.next_step(body, arrays)


def test_a_round_of_too_few_steps_is_refused_before_it_is_trained(session: TrainingSession) -> None:
    session.settings.config = SimpleNamespace(privacy=SimpleNamespace(least_steps=50))  # type: ignore[misc]
    body = TrainRequest(server_round=3, trained=2, layers=["weight"])
    with pytest.raises(ConfigError, match=r"^round 3 has 3 training steps, and privacy\.least_steps=50"):
        session.next_step(body, {})


def test_a_fold_whose_last_round_failed_is_evaluated_from_the_round_before(
    session: TrainingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that stay at the node have steps of the failed round in them, which noise has not paid for."""
    rounds: list[int] = []
    session._failed = True
    session.stages.start_fold = lambda fold: session.stages.trainer  # type: ignore[method-assign]
    monkeypatch.setattr(training_session, "end_loaders", lambda trainer: None)
    monkeypatch.setattr(session, "_resume_from", lambda trainer, body: rounds.append(session._finished_round))
    monkeypatch.setattr(training_session, "check_state", raising)
    with pytest.raises(RuntimeError, match="loaded"):
        session.evaluate(EvaluateRequest(server_round=3, trained=2), {})
    assert (rounds, session._failed) == ([0], False)


def raising(*_: Any) -> None:
    raise RuntimeError("loaded")


@pytest.mark.parametrize("received", [{"weight": np.zeros((1, 2), np.float32)}, {}], ids=["an average", "nothing"])
def test_what_a_round_brings_teaches_for_all_its_epochs(
    session: TrainingSession, received: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("reset_peak_memory", "load_state", "save_with_round"):
        monkeypatch.setattr(training_session, name, lambda *_: None)
    taught: list[tuple[str, bool]] = []
    stages: Any = session.stages
    stages.ranks = SimpleNamespace(start_epoch=lambda *given: taught.append(("ranks", given[-1])))
    module: Any = SimpleNamespace(
        network=None,
        nnunet=SimpleNamespace(device=None, current_epoch=0),
        set_proximal_term=lambda *_: None,
        update_pseudo_labels=lambda: taught.append(("this process", True)),
    )
    request: Any = None
    session._open = OpenRound(request, TrainRequest(server_round=3, trained=2, layers=[]), 2, received)
    for _ in range(2):
        session.start_epoch(module)
    first = [("this process", True), ("ranks", True)] if received else [("ranks", False)]
    assert taught == [*first, ("ranks", False)], "the second epoch has no teacher of its own"
