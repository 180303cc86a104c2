"""Which models travel where after training, over the local grid and the real relay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fednnunet.errors import NodeError, ProtocolError
from fednnunet.exchange.messages import ENSEMBLE, Fold, Kind
from fednnunet.server.node_client import NodeClient
from fednnunet.server.phases.evaluate import evaluate_external_centres
from fednnunet.server.phases.prepare import plan_networks
from fednnunet.server.phases.register import register_nodes
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import ServerSettings, Session
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.no_exchange import NoExchange
from tests.support.scripted_federation import Answer, Fault, ScriptedNode, fail_with_reason, serving

LAYERS = {"encoder": [2, 3]}
NODES = {1: "Oslo", 2: "Porto", 3: "Riga"}
Score = Callable[..., dict[tuple[str, str], float]]


@pytest.fixture
def recorder(tmp_path: Path) -> RunRecorder:
    return RunRecorder(tmp_path, "asym", [0, 1])


@pytest.fixture
def score(recorder: RunRecorder) -> Score:
    """Score Riga's case with the models of the two other nodes; returns fold and model to DSC.

    All values of Oslo's model of fold 1 are 0.11, of Porto's 0.21; a score is the mean of a model's values.
    """

    def run(
        strategy: Strategy,
        finished: dict[Fold, list[int]],
        silent: tuple[int, ...] = (),
        says: str | None = None,
        min_nodes: int | None = None,
    ) -> dict[tuple[str, str], float]:
        nodes = [ScriptedNode(name, LAYERS, cases=0 if name == "Riga" else 5) for name in NODES.values()]
        for number, node in enumerate(nodes, start=1):
            for fold in () if node.external else finished:
                value = (10 * number + int(fold)) / 100
                node.final[fold] = {"encoder": np.full((2, 3), value, dtype=np.float32)}
            if number in silent:
                node.fault = Fault("", fail_with_reason("its disk is gone"), kind=Kind.SEND_MODEL)
        if says is not None:
            nodes[-1].fault = Fault("", rename_model(says), kind=Kind.SCORE_MODELS)
        settings = ServerSettings(None, list(finished), 20, min_nodes=min_nodes)
        with serving(nodes) as grid:
            session = Session(NodeClient(grid, recorder), settings, strategy, recorder, final_models=finished)
            register_nodes(session)
            plan_networks(session)
            strategy.prepare({1: LAYERS, 2: LAYERS}, {1: "Oslo", 2: "Porto"})
            evaluate_external_centres(session)
        cases = pd.read_csv(recorder.cases, dtype={"fold": str})
        assert set(cases["node"]) == {"Riga"}
        return cases.set_index(["fold", "model"])["dsc"].to_dict()

    return run


def rename_model(name: str) -> Callable[[Answer], None]:
    """Scores of a model of this name."""

    def rename(answer: Answer) -> None:
        for case in answer.body["cases"]:
            case["model"] = name

    return rename


def test_every_nodes_folds_and_all_nodes_are_ensembles(score: Score) -> None:
    scores = score(NoExchange(), {0: [1, 2], 1: [1, 2]})
    assert scores == pytest.approx({(ENSEMBLE, "Oslo"): 0.105, (ENSEMBLE, "Porto"): 0.205, (ENSEMBLE, ENSEMBLE): 0.155})


def test_one_fold_keeps_its_number(score: Score) -> None:
    assert score(NoExchange(), {3: [1]}) == pytest.approx({("3", "Oslo"): 0.13})


def test_where_all_layers_are_averaged_one_model_stands_for_all(score: Score) -> None:
    scores = score(AsymFedAvg(), {0: [1, 2]}, silent=(2,))
    assert scores == pytest.approx({("0", "Oslo"): 0.1, ("0", "Porto"): 0.1, ("0", ENSEMBLE): 0.1})


def test_it_is_the_model_of_a_node_that_was_there_to_the_end(score: Score) -> None:
    scores = score(AsymFedAvg(), {0: [1, 2], 1: [2]}, silent=(1,), min_nodes=1)
    assert scores[(ENSEMBLE, "Porto")] == pytest.approx(0.205)


def test_a_node_that_is_gone_is_left_out_where_nodes_may_be(score: Score) -> None:
    assert score(NoExchange(), {0: [1, 2]}, silent=(2,), min_nodes=1) == pytest.approx({("0", "Oslo"): 0.1})


def test_else_it_ends_the_run_by_name(score: Score, recorder: RunRecorder) -> None:
    with pytest.raises(NodeError, match="node Porto: its disk is gone"):
        score(NoExchange(), {0: [1, 2]}, silent=(2,))
    assert not recorder.cases.exists()


def test_scores_of_a_model_that_was_not_sent_are_refused(score: Score) -> None:
    with pytest.raises(ProtocolError, match="node Riga sent scores of model Lund, which it was not sent"):
        score(NoExchange(), {0: [1, 2]}, says="Lund")


def test_what_is_scored_is_not_scored_again(score: Score, recorder: RunRecorder) -> None:
    once = score(NoExchange(), {0: [1, 2]})
    assert score(NoExchange(), {0: [1, 2]}, silent=(1, 2)) == once
