"""Rounds that hide cases, or the node: what they cost, where they stop, and once a real node that trains them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.config.privacy import CaseNoiseConfig, NodeNoiseConfig, PrivacyConfig, SecureSumsConfig
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import Kind, LayerClass, PlanReply, PreprocessReply, TrainRequest
from fednnunet.node.noise import CaseRounds, NodeRounds, deviation_share, secret_in
from fednnunet.node.settings import NOISE_KEY, NodeSettings
from fednnunet.privacy.accounting import epsilon_of
from fednnunet.privacy.ledger import Ledger
from tests.conftest import write_boxes
from tests.node.test_worker import Arrays, Server, run_config, serving

CASES = {case: f"digest of {case}" for case in "abcdef"}
NOISE = CaseNoiseConfig(noise=1.5, cases=2, patches=1)
STEPS, ROUNDS, RATE, DELTA = 2, 3, 0.5, 0.025
"""Two of four training cases in a step."""


def prepare(server: Server) -> tuple[PreprocessReply, list[str]]:
    server.ask(Kind.FINGERPRINT)
    planned = PlanReply.model_validate_json(server.ask(Kind.PLAN, '{"fingerprint": null}')[0])
    return PreprocessReply.model_validate_json(server.ask(Kind.PREPROCESS)[0]), list(planned.layers)


def same(ours: Arrays, theirs: Arrays) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.integration
def test_rounds_are_accounted_for_once_and_a_resumed_node_trains_the_same(tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw", cases=6)
    config = run_config(tmp_path).model_copy(update={"privacy": PrivacyConfig(case=NOISE)})
    raw = {"Oslo": tmp_path / "raw" / "Dataset101_Boxes"}
    settings = NodeSettings("Oslo", tmp_path / "node", raw, False, config, 1, False)
    with serving(settings) as server:
        prepared, layers = prepare(server)
        assert prepared.noise is not None
        assert (prepared.noise.hides, prepared.noise.units, prepared.noise.delta) == ("case", 2.0, DELTA)
        assert prepared.noise.epsilon == pytest.approx(epsilon_of(1.5, RATE, ROUNDS * STEPS, DELTA))
        first, sent = server.train(1, layers)
        assert (first.train_loss, first.val_loss, first.pseudo_dice) == (None, None, None)
        assert same(server.train(1, layers, trained=1)[1], sent)
        (entry,) = Ledger(settings.ledger).read()
        assert (entry.releases, entry.noise, entry.rate) == (STEPS, 1.5, RATE)
        assert entry.epsilon == pytest.approx(epsilon_of(1.5, RATE, STEPS, DELTA))
        _, expected = server.train(2, layers, sent, trained=1)
        assert len(Ledger(settings.ledger).read()) == 2
    with serving(settings) as server:  # its worker was killed, and starts again
        prepare(server)
        assert same(server.train(1, layers, trained=1)[1], sent)
        assert len(Ledger(settings.ledger).read()) == 2
        assert same(server.train(2, layers, sent, trained=1)[1], expected)
    assert [entry.server_round for entry in Ledger(settings.ledger).read()] == [1, 2, 2]


@pytest.fixture
def trainer() -> Any:
    """Four training cases, three epochs of two steps."""
    trainer: Any = nnUNetTrainer.__new__(nnUNetTrainer)
    trainer.network = nn.Linear(2, 1)
    trainer.num_epochs, trainer.num_iterations_per_epoch = ROUNDS, STEPS
    trainer.do_split = lambda: (list(CASES)[:4], [])
    return trainer


def rounds_of(tmp_path: Path, run: str = "run", max_epsilon: float | None = None, **noise: Any) -> CaseRounds:
    """Rounds of a run; all runs have one ledger."""
    case = NOISE.model_copy(update=noise)
    config = run_config(tmp_path).model_copy(update={"privacy": PrivacyConfig(case=case, max_epsilon=max_epsilon)})
    (tmp_path / run).mkdir(exist_ok=True)
    settings = NodeSettings("Oslo", tmp_path / run, {}, False, config, 1, False, privacy_ledger=tmp_path / "ledger")
    return CaseRounds(settings, case)


def test_a_run_that_would_cost_too_much_is_refused_before_it_trains(tmp_path: Path, trainer: Any) -> None:
    whole, two = (epsilon_of(1.5, RATE, runs * ROUNDS * STEPS, DELTA) for runs in (1, 2))
    problem = f"the run would bring epsilon to {whole:.2f}; at most {whole - 0.1:g} is allowed here"
    with pytest.raises(ConfigError, match=re.escape(problem)):
        rounds_of(tmp_path, max_epsilon=whole - 0.1).begin_fold(trainer, CASES, 1)
    rounds = rounds_of(tmp_path, max_epsilon=whole + 0.01)
    report = rounds.begin_fold(trainer, CASES, 1)
    assert report.total_epsilon == report.epsilon == pytest.approx(whole)
    for number in (1, 2, 3):
        rounds.finish_round(trainer, TrainRequest(server_round=number, layers=[]))
    # Started again, it is the same run; another one comes on top.
    again = rounds_of(tmp_path, max_epsilon=whole + 0.01).begin_fold(trainer, CASES, 1)
    assert again == report
    with pytest.raises(ConfigError, match=f"the run would bring epsilon to {two:.2f}; at most"):
        rounds_of(tmp_path, "another", max_epsilon=whole + 0.01).begin_fold(trainer, CASES, 1)
    assert rounds_of(tmp_path, "another").begin_fold(trainer, CASES, 1).total_epsilon == pytest.approx(two)


def test_a_round_that_is_asked_for_again_and_again_stops_at_the_limit(tmp_path: Path, trainer: Any) -> None:
    whole, more = (epsilon_of(1.5, RATE, rounds * STEPS, DELTA) for rounds in (ROUNDS, ROUNDS + 1))
    rounds = rounds_of(tmp_path, max_epsilon=whole + 0.01)
    rounds.begin_fold(trainer, CASES, 1)
    first = TrainRequest(server_round=1, layers=[])
    for _ in range(ROUNDS):
        rounds.check_round(trainer, first, {})
        rounds.finish_round(trainer, first)
    problem = f"round 1 would bring epsilon from {whole:.2f} to {more:.2f}; at most {whole + 0.01:g} is allowed here"
    with pytest.raises(ProtocolError, match=re.escape(problem)):
        rounds.check_round(trainer, first, {})


def test_the_last_round_counts_the_epochs_that_are_left(tmp_path: Path, trainer: Any) -> None:
    rounds = rounds_of(tmp_path)
    rounds.begin_fold(trainer, CASES, 1)
    for number in (1, 2):
        rounds.finish_round(trainer, TrainRequest(server_round=number, epochs=2, layers=[]))
    assert [entry.releases for entry in rounds.ledger.read()] == [2 * STEPS, STEPS]


def test_noise_is_computed_for_the_whole_run(tmp_path: Path, trainer: Any) -> None:
    report = rounds_of(tmp_path, noise=None, epsilon=2.0).begin_fold(trainer, CASES, 1)
    assert report.epsilon == pytest.approx(2.0, rel=1e-4)
    assert report.epsilon <= 2.0
    assert report.parameters == 3


@pytest.mark.parametrize(
    ("noise", "problem"),
    [
        (
            {"delta": 0.03},
            r"privacy\.case\.delta=0\.03 is more than 0\.025, .* 4 cases: .* set it to null",
        ),
        ({"noise": None, "epsilon": 1e-9, "delta": 1e-9}, r"epsilon=1e-09 cannot be had with 6 releases"),
    ],
)
def test_noise_that_cannot_be_had_is_refused(tmp_path: Path, trainer: Any, noise: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        rounds_of(tmp_path, **noise).begin_fold(trainer, CASES, 1)


def test_the_secret_of_the_noise_is_its_owners(tmp_path: Path) -> None:
    file = tmp_path / NOISE_KEY
    secret = secret_in(file)
    assert len(secret) == 32
    assert secret_in(file) == secret != secret_in(tmp_path / "other.key")
    assert file.stat().st_mode & 0o777 == 0o600


SUMS = SecureSumsConfig()
CLIP = 0.5


def node_rounds(tmp_path: Path, sums: SecureSumsConfig | None = None, **noise: Any) -> NodeRounds:
    node = NodeNoiseConfig(**{"noise": 3.0, "clip": CLIP, **noise})
    config = run_config(tmp_path).model_copy(update={"privacy": PrivacyConfig(node=node, secure_sums=sums)})
    settings = NodeSettings("Oslo", tmp_path, {}, False, config, 1, False)
    return NodeRounds(settings, node)


def train(rounds: NodeRounds, trainer: Any, body: TrainRequest, moved: float) -> tuple[np.ndarray, np.ndarray]:
    """Move every weight by so much in a round; returns the change that leaves, and weights that do not."""
    network = trainer.network = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 1, bias=False))
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(1.0)
    rounds.check_round(trainer, body, dict.fromkeys(body.layers, ()))
    rounds.start_round(network, body)
    with torch.no_grad():
        for weight in network.parameters():
            weight += moved
    rounds.finish_round(trainer, body)
    return network[0].weight.detach().numpy() - 1, network[1].weight.detach().numpy() - 1


def test_an_update_is_clipped_and_gets_noise_over_what_leaves(tmp_path: Path, trainer: Any) -> None:
    rounds = node_rounds(tmp_path)
    rounds.begin_fold(trainer, CASES, 1)
    body = TrainRequest(server_round=1, layers=["0.weight"])
    sent, kept = train(rounds, trainer, body, moved=0.2)  # of norm 0.2 * 100
    assert kept == pytest.approx(0.2)
    assert sent.std() == pytest.approx(3.0 * CLIP, rel=0.05)
    assert abs(sent.mean() - CLIP / 100) < 4 * 3.0 * CLIP / 100
    (entry,) = rounds.ledger.read()
    assert (entry.unit, entry.noise, entry.rate, entry.releases) == ("node", 3.0, 1.0, 1)
    again, _ = train(rounds, trainer, body, moved=0.2)
    assert (again == sent).all()
    other, _ = train(rounds, trainer, body, moved=0.3)  # the same once it is clipped, but for its last bits
    assert not (other == sent).all()


def test_a_small_update_is_not_changed_but_for_noise(tmp_path: Path, trainer: Any) -> None:
    rounds = node_rounds(tmp_path, noise=1e-6)
    rounds.begin_fold(trainer, CASES, 1)
    sent, _ = train(rounds, trainer, TrainRequest(server_round=1, layers=["0.weight"]), moved=0.001)
    assert sent == pytest.approx(0.001, abs=1e-5)


def test_with_secure_sums_honest_nodes_add_up_to_the_noise_of_one(tmp_path: Path, trainer: Any) -> None:
    rounds = node_rounds(tmp_path, SUMS)
    rounds.begin_fold(trainer, CASES, 1)
    classes = [LayerClass(members=list("abcdef"), layers=["0.weight"])]
    body = TrainRequest(server_round=1, layers=["0.weight"], classes=classes)
    sent, _ = train(rounds, trainer, body, moved=0.0)
    # Of six members, four open a sum; one of them may help the server.
    assert sent.std() * 3**0.5 == pytest.approx(3.0 * CLIP, rel=0.05)


def test_rounding_to_integers_takes_a_little_more_noise() -> None:
    # 33.5 million values, four nodes: a step is 64 * 4 / 2**31, and the update moves by 3.5e-4 at most.
    assert deviation_share(SUMS, 4, 33_500_000, clip=1.0) == pytest.approx((1 + 3.45e-4) / 2**0.5, rel=1e-5)


def test_rounds_of_several_epochs_are_fewer_releases(tmp_path: Path, trainer: Any) -> None:
    report = node_rounds(tmp_path, noise=None, epsilon=8.0).begin_fold(trainer, CASES, 2)
    assert (report.releases, report.units) == (2, None)
    assert report.epsilon == pytest.approx(8.0, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"layers": ["0.weight", "1.weight"]}, r"layer 1\.weight was asked for, but not sent"),
        ({"epochs": 2}, "a round of 2 epochs was asked for; the noise is for 1"),
        ({"most_cases": 5}, "count alike in a sum, but layers were to be weighted by cases"),
    ],
)
def test_a_round_in_which_noise_would_not_hide_the_node_is_refused(
    tmp_path: Path, trainer: Any, change: dict[str, Any], problem: str
) -> None:
    rounds = node_rounds(tmp_path, SUMS)
    rounds.begin_fold(trainer, CASES, 1)
    body = TrainRequest(**{"server_round": 1, "layers": ["0.weight"], **change})
    with pytest.raises(ProtocolError, match=problem):
        rounds.check_round(trainer, body, {"0.weight": ()})


def test_an_update_that_is_not_finite_does_not_leave(tmp_path: Path, trainer: Any) -> None:
    rounds = node_rounds(tmp_path)
    rounds.begin_fold(trainer, CASES, 1)
    with pytest.raises(ProtocolError, match="the update of the round is not finite"):
        train(rounds, trainer, TrainRequest(server_round=1, layers=["0.weight"]), moved=float("nan"))
    assert rounds.ledger.read() == []
