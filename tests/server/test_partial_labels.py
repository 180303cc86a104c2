"""Whole runs of nodes with unlike labels: heads are averaged class by class, whatever the strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from fednnunet.errors import FednnUNetError, ProtocolError
from fednnunet.exchange.messages import Kind
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from tests.server.test_federations import configured, interrupt_and_resume
from tests.support.scripted_federation import (
    Fault,
    FinishedRun,
    RunFederation,
    ScriptedNode,
    State,
    end_worker,
    fail_with_reason,
    same,
)

UNION = {"labels": "union"}
ANNOTATED = {"Oslo": (1, 3, 4), "Porto": (1, 2), "Riga": (1, 2, 4), "Turku": (3,)}
"""Classes of the network, by node: aorta, liver, spleen and uterus; 2 and 4 with two annotators."""
NAMES = ("aorta", "liver", "spleen", "uterus")
HEADS = ("seg_layers.0.weight", "seg_layers.0.bias")
LAYERS = {"encoder": [4, 3], "seg_layers.0.weight": [5, 3, 1, 1], "seg_layers.0.bias": [5]}


def labels_of(node: str) -> dict[str, int]:
    """The node's own values, in an order that is not the network's."""
    names = [NAMES[label - 1] for label in reversed(ANNOTATED[node])]
    return {"background": 0, **{name: value for value, name in enumerate(names, start=1)}}


def nodes(
    epochs: int = 3, names: Sequence[str] = tuple(ANNOTATED), layers: Mapping[str, Sequence[int]] = LAYERS
) -> list[ScriptedNode]:
    return [ScriptedNode(name, layers, epochs=epochs, heads=HEADS, labels=labels_of(name)) for name in names]


def expected_head(run: FinishedRun, head: str, server_round: int, members: Sequence[str], before: State) -> np.ndarray:
    """numpy's means of what the members of a round sent, row by row; before: what they were sent."""
    rows = []
    for label in range(5):
        sent = [run.nodes[n].sent[0, server_round][head][label] for n in members if label in (0, *ANNOTATED[n])]
        rows.append(np.mean(np.float64(sent), axis=0) if sent else before[head][label])
    return np.float32(rows)


def test_each_class_is_averaged_over_those_that_annotate_it(run_federation: RunFederation) -> None:
    run = run_federation(nodes(), settings=UNION)
    for server_round in (1, 2, 3):
        after, plain = run.average_after(server_round), run.mean_of(server_round, *ANNOTATED)
        assert np.array_equal(after["encoder"], plain["encoder"])
        for head in HEADS:
            assert np.array_equal(after[head], expected_head(run, head, server_round, [*ANNOTATED], {}))
            assert np.array_equal(after[head][0], plain[head][0]), "background is everybody's"
            assert not np.array_equal(after[head][1], plain[head][1])
    finals = [node.final[0] for node in run.nodes.values()]
    assert all(same(finals[0], other) for other in finals), "all nodes end with one model"


def test_a_row_of_one_annotator_is_its_own(run_federation: RunFederation) -> None:
    run = run_federation(nodes(names=("Porto", "Turku", "Riga")), settings=UNION)
    # Without Oslo, labels are aorta, liver, spleen, uterus still; spleen is Turku's alone.
    after = run.average_after(3)
    for head in HEADS:
        assert np.array_equal(after[head][3], run.nodes["Turku"].sent[0, 3][head][3])


def test_whoever_is_equal_trains_as_before(run_federation: RunFederation) -> None:
    """All have all labels under the same values: the means are those of whole layers."""
    everything = {"background": 0, **{name: value for value, name in enumerate(NAMES, start=1)}}
    centres = [ScriptedNode(name, LAYERS, heads=HEADS, labels=everything) for name in ANNOTATED]
    run = run_federation(centres, settings=UNION)
    assert same(run.average_after(2), run.mean_of(2, *ANNOTATED))
    assert not list(run.folder.glob("strategy_fold_*")), "an average needs no checkpoint"


def test_a_class_whose_annotators_are_absent_keeps_its_last_row(run_federation: RunFederation) -> None:
    """Oslo and Turku fail in round 2: nobody else annotates class 3."""
    fault = Fault("", worker=fail_with_reason("its disk is full"))
    run = run_federation(nodes(), None, {**UNION, "min_nodes": 2}, {"Oslo": fault, "Turku": fault})
    before, after = run.average_after(1), run.average_after(2)
    for head in HEADS:
        assert np.array_equal(after[head], expected_head(run, head, 2, ["Porto", "Riga"], before))
        assert np.array_equal(after[head][3], before[head][3])
        assert not np.array_equal(run.nodes["Riga"].sent[0, 2][head][3], before[head][3]), "it was trained at the node"


def test_a_node_that_is_gone_leaves_its_last_row(run_federation: RunFederation) -> None:
    faults = {name: Fault("", worker=end_worker, of="2") for name in ("Oslo", "Turku")}
    run = run_federation(nodes(), None, {**UNION, "min_nodes": 2}, faults)
    ends = [run.average_after(server_round) for server_round in (1, 3)]
    assert all(np.array_equal(ends[0][head][3], ends[1][head][3]) for head in HEADS)


def test_some_nodes_per_round(run_federation: RunFederation) -> None:
    """Two of four in each of eight rounds; with these draws every class is missed at least once."""
    run = run_federation(nodes(epochs=8), AsymFedAvg(fraction_train=0.5), UNION)
    held: State = {}
    missed = set()
    for server_round in range(1, 9):
        members = [node for r, node in run.rows if r == server_round]
        present = {label for node in members for label in ANNOTATED[node]}
        missed |= set(range(1, 5)) - present
        held = {head: expected_head(run, head, server_round, members, held or _start(run)) for head in HEADS}
        received = [node.received.get((0, server_round + 1)) for node in run.nodes.values()]
        assert all(np.array_equal(state[head], held[head]) for state in received if state for head in HEADS)
    assert missed, "or this tests nothing"


def _start(run: FinishedRun) -> State:
    """What round 1 started with."""
    return next(node.received[0, 1] for node in run.nodes.values() if (0, 1) in node.received)


def test_rows_are_weighted_by_cases_as_layers_are(run_federation: RunFederation) -> None:
    centres = nodes()
    for node, cases in zip(centres, (5, 11, 21, 7), strict=True):
        node.cases = cases  # one of them is held out
    run = run_federation(centres, AsymFedAvg(weighting="num_cases"), UNION)
    sent = {name: node.sent[0, 3]["seg_layers.0.bias"].astype(np.float64) for name, node in run.nodes.items()}
    bias = run.average_after(3)["seg_layers.0.bias"]
    assert bias[2] == np.float32((10 * sent["Porto"][2] + 20 * sent["Riga"][2]) / 30)
    assert bias[3] == np.float32((4 * sent["Oslo"][3] + 6 * sent["Turku"][3]) / 10)


def test_heads_of_unlike_networks_match_by_name_and_shape(run_federation: RunFederation) -> None:
    """Oslo's and Turku's have six features. Nobody of the others annotates class 3: they keep what they began with."""
    wide = {**LAYERS, "seg_layers.0.weight": [5, 6, 1, 1]}
    centres = [*nodes(names=("Oslo", "Turku"), layers=wide), *nodes(names=("Porto", "Riga"))]
    run = run_federation(centres, AsymFedAvg(average_over="groups"), UNION)
    ours, theirs = run.average_after(3, node="Oslo"), run.average_after(3, node="Riga")
    head = "seg_layers.0.weight"
    assert np.array_equal(ours[head], expected_head(run, head, 3, ["Oslo", "Turku"], run.average_after(2, node="Oslo")))
    assert np.array_equal(theirs[head], expected_head(run, head, 3, ["Porto", "Riga"], run.average_after(2)))
    assert np.array_equal(theirs[head][3], run.nodes["Riga"].received[0, 1][head][3])


def test_heads_that_stay_local_do_not_travel(run_federation: RunFederation) -> None:
    run = run_federation(nodes(), AsymFedAvg(keep_local=["seg_layers"]), UNION)
    for node in run.nodes.values():
        assert all(set(state) <= {"encoder"} for state in node.received.values())
    assert not list(run.folder.glob("strategy_fold_*"))


def test_another_strategy_never_sees_heads(run_federation: RunFederation, tmp_path: Path) -> None:
    config = configured(tmp_path, "strategy=fedavgm")
    run = run_federation(nodes(), instantiate(config.strategy.aggregation), UNION)
    after, plain = run.average_after(3), run.mean_of(3, *ANNOTATED)
    assert not np.allclose(after["encoder"], plain["encoder"]), "that has momentum"
    for head in HEADS:
        assert np.array_equal(after[head], expected_head(run, head, 3, [*ANNOTATED], {}))


@pytest.mark.parametrize("name", ["asym", "fedprox", "fedavgm", "fedadam", "fedmedian", "fedtrimmedavg", "krum"])
def test_heads_alone_can_be_trained(run_federation: RunFederation, tmp_path: Path, name: str) -> None:
    strategy = instantiate(configured(tmp_path, f"strategy={name}").strategy.aggregation)
    run = run_federation(nodes(), strategy, {**UNION, "train_layers": ["seg_layers"]})
    assert run.average_after(3).keys() == set(HEADS)
    for head in HEADS:
        assert np.array_equal(run.average_after(3)[head], expected_head(run, head, 3, [*ANNOTATED], {}))


def test_a_node_that_names_no_heads_is_refused(run_federation: RunFederation) -> None:
    centres = nodes()
    centres[2].heads = []
    with pytest.raises(
        ProtocolError, match=r"^node Riga names no heads of its network for the 5 classes of all nodes$"
    ):
        run_federation(centres, settings=UNION)
    assert not centres[0].requests_of(Kind.TRAIN)


def test_a_head_of_other_classes_is_refused(run_federation: RunFederation) -> None:
    centres = nodes(layers={**LAYERS, "seg_layers.0.bias": [4]})
    with pytest.raises(ProtocolError, match=r"^node Oslo: head seg_layers.0.bias has shape \[4\]; it must be for 5"):
        run_federation(centres, settings=UNION)


# what travels rounded, and what is resumed -------------------------------------------------------------

DTYPES = {"bfloat16": 2**-8, "float16": 2**-11, "int8": 2e-2, "int4": 0.3}
"""Largest error of a value, relative to the largest of its head, that travelling may add to a mean."""


@pytest.mark.parametrize(("dtype", "error"), DTYPES.items())
def test_rounded_rows_are_means_of_their_annotators_too(
    run_federation: RunFederation, tmp_path: Path, dtype: str, error: float
) -> None:
    exact = run_federation(nodes(epochs=1), settings=UNION, folder=tmp_path / "exact")
    run = run_federation(nodes(epochs=1), settings={**UNION, "dtype": dtype}, folder=tmp_path / "rounded")
    for head in HEADS:
        ours, theirs = (r.average_after(1)[head].astype(np.float32) for r in (run, exact))
        plain = exact.mean_of(1, *ANNOTATED)[head]
        assert np.abs(ours - theirs).max() <= 2 * error * np.abs(theirs).max()
        assert np.abs(ours - theirs).sum() < np.abs(ours - plain).sum(), "nearer to those means than to others"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_rows_of_absent_annotators_stay_to_the_last_bit(run_federation: RunFederation, dtype: str) -> None:
    fault = Fault("", worker=fail_with_reason("its disk is full"), of="2")
    settings = {**UNION, "min_nodes": 2, "dtype": dtype}
    run = run_federation(nodes(), None, settings, {"Oslo": fault, "Turku": fault})
    before, after = run.average_after(1), run.average_after(2)
    assert all(np.array_equal(before[head][3], after[head][3]) for head in HEADS)


INTERRUPTED: dict[str, tuple[str, ...]] = {
    "asym": ("strategy=asym",),
    "some nodes per round": ("strategy=asym", "strategy.aggregation.fraction_train=0.5"),
    "bfloat16": ("strategy=asym", "exchange.dtype=bfloat16"),
    "int8": ("strategy=asym", "exchange.dtype=int8"),
    "int4, some nodes, momenta": (
        *("strategy=fedavgm", "exchange.dtype=int4"),
        "strategy.aggregation.fraction_train=0.5",
    ),
}


@pytest.mark.parametrize("overrides", INTERRUPTED.values(), ids=INTERRUPTED)
def test_an_interrupted_run_ends_with_the_same_bytes(
    run_federation: RunFederation, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    config = configured(tmp_path, *overrides)
    settings: dict[str, Any] = {**UNION, "dtype": config.exchange.dtype}

    def start(folder: Path, members: Sequence[ScriptedNode], faults: Mapping[str, Fault]) -> FinishedRun:
        return run_federation(members, instantiate(config.strategy.aggregation), settings, faults, folder=folder)

    ours = interrupt_and_resume(start, tmp_path / "interrupted", nodes(epochs=6), "4")
    theirs = start(tmp_path / "whole", nodes(epochs=6), {})
    assert ours.rows == theirs.rows
    for name, node in theirs.nodes.items():
        assert same(ours.nodes[name].final[0], node.final[0]), name


def test_rows_of_nodes_that_are_gone_survive_an_interruption(run_federation: RunFederation, tmp_path: Path) -> None:
    """Class 3 has no annotator from round 2 on, and the run is interrupted in round 4."""
    absent = {name: Fault("", worker=end_worker, of="2") for name in ("Oslo", "Turku")}
    power_cut = Fault("", worker=fail_with_reason("the power is gone"), of="4")
    settings = {**UNION, "min_nodes": 2}
    whole = run_federation(nodes(epochs=5), None, settings, absent, folder=tmp_path / "whole")
    members, folder = nodes(epochs=5), tmp_path / "interrupted"
    with pytest.raises(FednnUNetError):
        run_federation(members, None, settings, {**absent, "Porto": power_cut, "Riga": power_cut}, folder=folder)
    left = [node for node in members if node.name not in absent]
    resumed = run_federation(left, None, settings, folder=folder)
    assert [body.server_round for body in left[0].requests_of(Kind.TRAIN)][-2:] == [4, 5]
    assert same(resumed.average_after(5), whole.average_after(5))
    assert all(np.array_equal(resumed.average_after(5)[head][3], whole.average_after(1)[head][3]) for head in HEADS)
