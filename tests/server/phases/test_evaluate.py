"""Which models travel where after training, over the embedded grid and the real relay."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fednnunet import __version__
from fednnunet.client_app import app
from fednnunet.errors import NodeError, ProtocolError
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.messages import (
    ENSEMBLE,
    CaseScore,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FingerprintReply,
    Fold,
    PlanReply,
)
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.phases.evaluate import evaluate_external_centres
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Federation, ServerSettings, Session
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.no_exchange import NoExchange

KEY = b"k" * 32
NODES = {1: "Oslo", 2: "Porto", 3: "Riga"}
RIGA = 3
LAYERS = {"encoder": [2, 3]}


class Node:
    """Sends a model that is its number all over; at the external centre, scores by the mean of what it has kept."""

    def __init__(self, number: int, sends: bool, says: str | None) -> None:
        self.number, self.sends, self.says = number, sends, says
        self.kept: dict[str, list[float]] = {}

    def answer(self, request: Request) -> None:
        body = EvaluateRequest.model_validate_json(request.body)
        if body.keep is not None:
            self.kept.setdefault(body.keep.node, []).append(float(request.arrays["encoder"].mean()))
            request.reply(EvaluateReply(seconds=0).model_dump_json())
        elif body.score:
            means = {name: float(np.mean(self.kept[name])) for name in body.score}
            if len(means) > 1:
                means[ENSEMBLE] = float(np.mean(list(means.values())))
            cases = [self._score(self.says or name, mean / 100) for name, mean in means.items()]
            request.reply(EvaluateReply(cases=cases, seconds=0).model_dump_json())
        elif not self.sends:
            request.fail(Failure(reason=f"node {NODES[self.number]}: its disk is gone", error="internal"))
        else:
            fold = 0 if body.fold == "all" else body.fold
            arrays = SharedArrays.allocate({"encoder": ((2, 3), np.dtype("float32"))})
            arrays.views()["encoder"][:] = 10 * self.number + fold
            request.reply(EvaluateReply(mirror_axes=[0], seconds=0).model_dump_json(), arrays)
            arrays.close()

    def _score(self, model: str, dsc: float) -> CaseScore:
        return CaseScore(centre=NODES[self.number], case=0, label="tumour", model=model, dsc=dsc, hd95=1.0)


Score = Callable[..., dict[tuple[str, str], float]]


@pytest.fixture
def recorder(tmp_path: Path) -> RunRecorder:
    return RunRecorder(tmp_path, "asym", [0, 1])


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: RunRecorder) -> Iterator[Score]:
    """Score Riga's case with the models of the two other nodes; returns fold and model to DSC."""
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(KEY)

    addresses = itertools.count()
    with contextlib.ExitStack() as stack:

        def run(
            strategy: Strategy,
            finished: dict[Fold, list[int]],
            silent: tuple[int, ...] = (),
            says: str | None = None,
            min_replies: int | None = None,
        ) -> dict[tuple[str, str], float]:
            configs = {}
            for number in NODES:
                address = f"socket{next(addresses)}"
                channel = WorkerChannel(address, KEY)
                stack.callback(channel.close)
                node = Node(number, number not in silent, says)
                threading.Thread(target=serve, args=(channel, node), daemon=True).start()
                configs[number] = {"socket": address, "key-file": "key"}
            grid = LocalGrid(app, configs, 1)
            stack.callback(grid.close)
            settings = ServerSettings(None, list(finished), 20, min_replies=min_replies)
            client = NodeClient(grid, recorder)
            evaluate_external_centres(Session(client, settings, strategy, recorder, federation(strategy), finished))
            cases = pd.read_csv(recorder.cases, dtype={"fold": str})
            assert set(cases["node"]) == {"Riga"}
            return cases.set_index(["fold", "model"])["dsc"].to_dict()

        def serve(channel: WorkerChannel, node: Node) -> None:
            with contextlib.suppress(ConnectionError):  # the test is over
                while (request := channel.receive()) is not None:
                    node.answer(request)

        yield run


def federation(strategy: Strategy) -> Federation:
    """Two nodes of the same plans, and an external one."""
    described = {
        number: FingerprintReply(
            node=name,
            version=__version__,
            external=number == RIGA,
            num_training=0 if number == RIGA else 5,
            configuration="2d",
            channel_names={"0": "MRI"},
            labels={"background": 0, "tumour": 1},
            file_ending=".nii.gz",
        )
        for number, name in NODES.items()
    }
    plans = {
        number: PlanReply(plans={"dataset_name": name, "patch": 64}, layers=LAYERS, num_parameters=6)
        for number, name in NODES.items()
        if number != RIGA
    }
    strategy.prepare(dict.fromkeys(plans, LAYERS), {number: NODES[number] for number in plans})
    return Federation(described, plans)


def test_every_nodes_folds_and_all_nodes_are_ensembles(score: Score) -> None:
    scores = score(NoExchange(), {0: [1, 2], 1: [1, 2]})
    assert scores == pytest.approx({(ENSEMBLE, "Oslo"): 0.105, (ENSEMBLE, "Porto"): 0.205, (ENSEMBLE, ENSEMBLE): 0.155})


def test_one_fold_keeps_its_number(score: Score) -> None:
    assert score(NoExchange(), {3: [1]}) == pytest.approx({("3", "Oslo"): 0.13})


def test_where_all_layers_are_averaged_one_model_stands_for_all(score: Score) -> None:
    scores = score(AsymFedAvg(), {0: [1, 2]}, silent=(2,))
    assert scores == pytest.approx({("0", "Oslo"): 0.1, ("0", "Porto"): 0.1, ("0", ENSEMBLE): 0.1})


def test_it_is_the_model_of_a_node_that_was_there_to_the_end(score: Score) -> None:
    scores = score(AsymFedAvg(), {0: [1, 2], 1: [2]}, silent=(1,), min_replies=1)
    assert scores[(ENSEMBLE, "Porto")] == pytest.approx(0.205)


def test_a_node_that_is_gone_is_left_out_where_nodes_may_be(score: Score) -> None:
    assert score(NoExchange(), {0: [1, 2]}, silent=(2,), min_replies=1) == pytest.approx({("0", "Oslo"): 0.1})


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
