"""Secure sums over a scripted federation: nodes with real keys and masks, and every way in which one may be missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fednnunet.errors import ConfigError, NodeError, ProtocolError
from fednnunet.exchange.messages import Kind
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.privacy.ring import FixedPoint
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
    norm,
    same,
)
from tests.support.secure_nodes import RUN, Authority, SecureNode, secure_nodes

NAMES = ("Riga", "Porto", "Turku", "Linz")
LIMIT = 64.0
LARGEST_ERROR = FixedPoint(len(NAMES), LIMIT).error_bound(len(NAMES), len(NAMES))


def strategy_of(**options: Any) -> SecureAsymFedAvg:
    return SecureAsymFedAvg(limit=LIMIT, **options)


@pytest.fixture
def run_securely(run_federation: RunFederation) -> RunFederation:
    """Run a federation whose layers are summed securely."""

    def run(nodes: Iterable[SecureNode], strategy: Any = None, settings: Any = None, **options: Any) -> FinishedRun:
        return run_federation(nodes, strategy or strategy_of(), {"secure_run": RUN, **(settings or {})}, **options)

    return run


def is_mean(average: Mapping[str, np.ndarray], mean: Mapping[str, np.ndarray]) -> bool:
    """But for rounding: of the sums, and to float32."""
    return all(
        (np.abs(average[name].astype(float) - mean[name]) <= LARGEST_ERROR + np.spacing(np.abs(mean[name]))).all()
        for name in mean
    )


def test_averages_are_those_of_layers_in_clear(
    run_securely: RunFederation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        done = run_securely(secure_nodes(NAMES, tmp_path / "keys"))
    assert "securely over at least 3 of 4 nodes; with equal weights averages err by at most 6.0e-08" in caplog.text
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
    assert done.rounds[["train_loss", "pseudo_dice", "update_norm"]].isna().all(axis=None)


def test_figures_are_known_of_all_nodes_together(run_securely: RunFederation, tmp_path: Path) -> None:
    done = run_securely(secure_nodes(NAMES, tmp_path / "keys"))
    means = pd.read_csv(tmp_path / "round_means.csv")
    assert list(means["round"]) == [1, 2, 3]
    assert (means["nodes"] == len(NAMES)).all()
    assert np.allclose(means["train_loss"], -0.5, atol=1e-6)
    assert np.allclose(means["pseudo_dice"], 0.5, atol=1e-6)
    assert means["val_loss"].isna().all()
    start = done.nodes["Riga"].received[0, 1]
    change = {layer: done.average_after(1)[layer] - array for layer, array in start.items()}
    assert means["update_norm"][0] == pytest.approx(norm(change) / norm(start), rel=1e-5)


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


def test_a_round_that_is_not_opened_is_void(run_securely: RunFederation, tmp_path: Path) -> None:
    """One of four lets three answer; two that do not are one too many. The next round starts from the same averages."""
    fault = Fault("", worker=fail_with_reason("its disk is gone"), kind=Kind.UNMASK)
    nodes = secure_nodes(NAMES, tmp_path / "keys")
    done = run_securely(nodes, faults=dict.fromkeys(NAMES[:2], fault))
    assert any(
        "round 2 of fold 0 is void: 2 of the 3 shares that it takes are there; the next round starts" in m
        for m in done.messages
    )
    assert same(done.average_after(2), done.average_after(1))
    assert is_mean(done.average_after(3), done.mean_of(3, *NAMES))
    assert {number for number, _ in done.rows} == {1, 3}


def test_a_node_that_was_upgraded_opens_nothing(run_securely: RunFederation, tmp_path: Path) -> None:
    def upgrade(reply: Message) -> None:
        reply.content.config_records["config"]["version"] = "99.0"

    nodes = secure_nodes(NAMES, tmp_path / "keys")
    done = run_securely(nodes, faults=dict.fromkeys(NAMES[:2], Fault("", wire=upgrade, kind=Kind.UNMASK)))
    assert any("round 2 of fold 0 is void: 2 of the 3 shares" in text for text in done.messages)


def test_void_rounds_in_a_row_end_the_run(run_securely: RunFederation, tmp_path: Path) -> None:
    nodes = secure_nodes(NAMES, tmp_path / "keys", epochs=9)
    faults = dict.fromkeys(NAMES[:2], Fault("", worker=fail_with_reason("no"), kind=Kind.UNMASK, of="every"))
    with pytest.raises(ProtocolError, match=r"round 3 of fold 0 is void: .* \(3 rounds in a row\)"):
        run_securely(nodes, faults=faults)


class Unlike(SecureAsymFedAvg):
    """Sends one node another model than the others."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        requests = list(super().configure_train(server_round, arrays, config, grid))
        sent = from_array_record(requests[0].content.array_records["arrays"], "a test")
        requests[0].content["arrays"] = to_array_record({name: array + 0.25 for name, array in sent.items()})
        return requests


def test_a_server_that_sends_unlike_models_learns_nothing(run_securely: RunFederation, tmp_path: Path) -> None:
    """Masks depend on what a node was sent (Pasquini et al. 2022)."""
    strategy = Unlike(limit=LIMIT)
    with pytest.raises(ProtocolError, match="void: 0 of the 3 shares that it takes"):
        run_securely(secure_nodes(NAMES, tmp_path / "keys", layers={"encoder": [40, 30]}), strategy)


def spoil_masks(answer: Answer) -> None:
    """Fault: what arrives is not what was masked."""
    answer.arrays["encoder"] = answer.arrays["encoder"] + np.int32(2**29)


def test_an_average_that_has_changed_too_much_is_not_used(run_securely: RunFederation, tmp_path: Path) -> None:
    """Nobody knows whose layers are wrong; nobody gets an average of them."""
    nodes = secure_nodes(NAMES, tmp_path / "keys", layers={"encoder": [40, 30]})
    done = run_securely(nodes, faults={"Turku": Fault("", worker=spoil_masks)})
    assert any("round 2 of fold 0 is void: one node or more sent an update 1" in text for text in done.messages)
    assert same(done.average_after(2), done.average_after(1))
    assert is_mean(done.average_after(3), done.mean_of(3, *NAMES))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda answer: answer.arrays.pop("encoder"), "did not send layer encoder"),
        (lambda answer: answer.arrays.pop("figures"), "did not send layer figures"),
        (
            lambda answer: answer.arrays.update(encoder=answer.arrays["encoder"].astype(np.float32)),
            "sent layer encoder as float32 instead of int32",
        ),
        (lambda answer: answer.arrays.update(encoder=np.zeros(3, np.int32)), "with shape (3,)"),
    ],
)
def test_replies_that_are_not_masked_layers_are_refused(
    run_securely: RunFederation, tmp_path: Path, spoil: Any, problem: str
) -> None:
    nodes = secure_nodes(NAMES, tmp_path / "keys")
    done = run_securely(nodes, settings={"min_nodes": 3}, faults={"Turku": Fault("", worker=spoil)})
    assert any(message.startswith("node Turku: ") and problem in message for message in done.messages)
    assert is_mean(done.average_after(2), done.mean_of(2, "Riga", "Porto", "Linz"))


def test_an_interrupted_run_goes_on_from_the_servers_averages(run_securely: RunFederation, tmp_path: Path) -> None:
    """The server ends in round 2, in some workers after it; the whole run is that of an undisturbed one."""
    whole = run_securely(secure_nodes(NAMES, tmp_path / "keys"), folder=tmp_path / "whole")
    nodes = secure_nodes(NAMES, tmp_path / "keys2")
    with pytest.raises(NodeError, match="Linz"):
        run_securely(nodes, folder=tmp_path / "two", faults={"Linz": Fault("", worker=fail_with_reason("no GPU"))})
    for node in nodes[:2]:
        node.restart()
    done = run_securely(nodes, folder=tmp_path / "two")
    assert same(done.average_after(ROUNDS), whole.average_after(ROUNDS))


def test_nodes_without_keys_are_named(run_securely: RunFederation, tmp_path: Path) -> None:
    nodes = secure_nodes(NAMES, tmp_path / "keys")
    with pytest.raises(NodeError, match="node Porto: sent no key for secure sums"):
        run_securely(
            nodes,
            faults={
                "Porto": Fault("", worker=lambda a: a.body.pop("key", None), kind=Kind.FINGERPRINT, of="nothing"),
            },
        )


def test_a_key_of_another_federation_is_refused_by_name(run_securely: RunFederation, tmp_path: Path) -> None:
    stranger = SecureNode("Porto", Authority(tmp_path / "other"))
    nodes = [*secure_nodes(("Riga", "Turku", "Linz"), tmp_path / "keys"), stranger]
    with pytest.raises(NodeError, match=r"the key of node .* has no certificate that counts: it is not signed by"):
        run_securely(nodes)


def test_too_few_nodes_for_any_sum(run_securely: RunFederation, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.secure_sums: no layer is at 3 of the 2 nodes"):
        run_securely(secure_nodes(NAMES[:2], tmp_path / "keys"))
