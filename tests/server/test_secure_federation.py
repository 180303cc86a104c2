"""Secure sums over a scripted federation: nodes with real keys and masks, and every way in which one may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fednnunet.errors import ConfigError, NodeError, ProtocolError
from fednnunet.exchange.messages import Kind
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.privacy.ring import FixedPoint
from fednnunet.privacy.secure_sum import SumRules
from fednnunet.server.strategy.secure_asym_fedavg import SecureAsymFedAvg
from tests.support.scripted_federation import (
    CASES,
    ROUNDS,
    Answer,
    Fault,
    FinishedRun,
    RunFederation,
    end_worker,
    fail_with_reason,
    same,
)
from tests.support.secure_nodes import RUN, Authority, SecureNode, secure_nodes

NAMES = ("Riga", "Porto", "Turku", "Linz")
LIMIT = 64.0
LARGEST_ERROR = FixedPoint(len(NAMES), LIMIT).error_bound(len(NAMES), len(NAMES)) + 6e-8
"""Rounding of the sums, and of float32 at 1."""


def strategy_of(**options: Any) -> SecureAsymFedAvg:
    return SecureAsymFedAvg(SumRules(), LIMIT, **options)


@pytest.fixture
def run_securely(run_federation: RunFederation) -> RunFederation:
    """Run a federation whose layers are summed securely."""

    def run(nodes: Iterable[SecureNode], strategy: Any = None, settings: Any = None, **options: Any) -> FinishedRun:
        return run_federation(nodes, strategy or strategy_of(), {"secure_run": RUN, **(settings or {})}, **options)

    return run


def is_mean(average: Mapping[str, np.ndarray], mean: Mapping[str, np.ndarray]) -> bool:
    return all(np.abs(average[name].astype(float) - mean[name]).max() <= LARGEST_ERROR for name in mean)


def test_averages_are_those_of_layers_in_clear(run_securely: RunFederation, tmp_path: Path) -> None:
    done = run_securely(secure_nodes(NAMES, tmp_path / "keys"))
    for server_round in range(1, ROUNDS + 1):
        assert is_mean(done.average_after(server_round), done.mean_of(server_round, *NAMES))
        assert same(done.average_after(server_round), done.average_after(server_round, node="Linz"))
    assert len(done.rows) == ROUNDS * len(NAMES)


def test_nothing_of_one_node_reaches_the_server(run_securely: RunFederation, tmp_path: Path) -> None:
    """What it sends is as good as random: nothing of its layers or figures is in it."""
    nodes = secure_nodes(NAMES, tmp_path / "keys", layers={"encoder": [400, 30]})
    done = run_securely(nodes)
    for node in nodes:
        masked, layers = node.masked[0, 1]["encoder"], node.sent[0, 1]["encoder"]
        assert masked.dtype == np.int32
        assert abs(np.corrcoef(masked.ravel(), layers.ravel())[0, 1]) < 0.05
    assert done.rounds["train_loss"].isna().all()


@pytest.mark.parametrize("names", [NAMES, NAMES[:3]])
def test_weights_by_cases_are_fedavgs(run_securely: RunFederation, tmp_path: Path, names: tuple[str, ...]) -> None:
    authority = Authority(tmp_path / "keys")
    nodes = [SecureNode(name, authority, cases=CASES + 7 * number) for number, name in enumerate(names)]
    done = run_securely(nodes, strategy_of(weighting="num_cases"))
    cases = np.array([node.cases - 1 for node in nodes])
    for layer, average in done.average_after(2).items():
        sent = np.array([node.sent[0, 2][layer].astype(float) for node in nodes])
        assert np.abs(np.average(sent, axis=0, weights=cases) - average).max() <= 2 * LARGEST_ERROR


def test_layers_of_too_few_nodes_stay_there(run_securely: RunFederation, tmp_path: Path) -> None:
    """Four have the encoder, three the middle, two the head."""
    authority, middle, head = Authority(tmp_path / "keys"), {"middle": [7]}, {"head": [2]}
    layers = {"encoder": [4, 3]}
    nodes = [
        SecureNode("Riga", authority, layers=layers | middle | head),
        SecureNode("Porto", authority, layers=layers | middle | head),
        SecureNode("Turku", authority, layers=layers | middle),
        SecureNode("Linz", authority, layers=layers),
    ]
    done = run_securely(nodes, strategy_of(average_over="groups"))
    assert done.average_after(1).keys() == {"encoder", "middle"}
    assert done.average_after(1, node="Linz").keys() == {"encoder"}
    mean = np.mean([node.sent[0, 1]["middle"].astype(float) for node in nodes[:3]], axis=0)
    assert np.abs(done.average_after(1)["middle"] - mean).max() <= LARGEST_ERROR


@pytest.mark.parametrize("worker", [end_worker, fail_with_reason("no GPU")])
def test_a_node_that_dies_before_it_has_masked_is_not_in(
    run_securely: RunFederation, tmp_path: Path, worker: Any
) -> None:
    """The others' masks with it are opened."""
    nodes = secure_nodes(NAMES, tmp_path / "keys")
    done = run_securely(nodes, settings={"min_nodes": 3}, faults={"Turku": Fault("", worker=worker)})
    assert is_mean(done.average_after(2), done.mean_of(2, "Riga", "Porto", "Linz"))
    assert not is_mean(done.average_after(2), done.mean_of(2, *NAMES[:2]))


def test_a_node_that_dies_after_it_has_masked_is_in(run_securely: RunFederation, tmp_path: Path) -> None:
    nodes = secure_nodes(NAMES, tmp_path / "keys")
    fault = Fault("", worker=fail_with_reason("its disk is gone"), kind=Kind.UNMASK)
    done = run_securely(nodes, settings={"min_nodes": 3}, faults={"Turku": fault})
    assert is_mean(done.average_after(2), done.mean_of(2, *NAMES))
