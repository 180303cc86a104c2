"""Whole runs at the server, with nodes that follow a script: exchange, rounds, missing nodes, resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from fednnunet.config.run import RunConfig, read_config
from fednnunet.errors import ConfigError, DataError, FednnUNetError
from fednnunet.exchange.messages import Kind
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.no_exchange import NoExchange
from tests.support.scripted_federation import (
    Fault,
    FinishedRun,
    RunFederation,
    ScriptedNode,
    end_worker,
    fail_with_reason,
    same,
)

CONF = Path(__file__).parents[2] / "conf"
NODES = ("Riga", "Porto", "Turku")
FLOWER = ("fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum")


def nodes(epochs: int = 3, names: Sequence[str] = NODES) -> list[ScriptedNode]:
    return [ScriptedNode(name, epochs=epochs) for name in names]


def configured(tmp_path: Path, *overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", overrides=[f"paths.run={tmp_path}", *overrides]))


# what nodes must agree on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "ours", "theirs"),
    [
        (
            "labels",
            {"background": 0, "whole": [1, 2], "core": [2]},
            {"background": 0, "core": [2], "whole": [1, 2]},
        ),
        ("channel_names", {"0": "CT", "1": "MR"}, {"1": "MR", "0": "CT"}),
        ("regions_class_order", [1, 2], [2, 1]),
        ("file_ending", ".nii.gz", ".nii"),
    ],
)
def test_nodes_that_disagree_are_stopped_before_they_plan(
    run_federation: RunFederation, field: str, ours: Any, theirs: Any
) -> None:
    """nnU-Net has channels and regions in the order of the entries: dicts that compare equal may not be the same."""
    centres = [ScriptedNode("Porto", **{field: ours}), ScriptedNode("Riga", **{field: theirs})]
    with pytest.raises(DataError) as stopped:
        run_federation(centres)
    assert f"nodes Porto and Riga disagree on {field} in dataset.json" in str(stopped.value)
    assert f"{ours} and {theirs}" in str(stopped.value)
    assert not centres[0].requests_of(Kind.PLAN)


def test_plain_labels_may_be_in_any_order(run_federation: RunFederation) -> None:
    """nnU-Net has outputs for them in the order of their values."""
    orders = {"Porto": {"background": 0, "x": 1, "y": 2}, "Riga": {"y": 2, "x": 1, "background": 0}}
    run = run_federation([ScriptedNode(name, labels=labels) for name, labels in orders.items()])
    assert len(run.rows) == 6


def test_an_external_node_scores_models_of_its_own_order_of_regions_only(run_federation: RunFederation) -> None:
    labels: dict[str, Any] = {"background": 0, "x": [1, 2], "y": 2}
    other_order = {"background": 0, "y": 2, "x": [1, 2]}
    external = ScriptedNode("Turku", cases=0, labels=labels)
    centres = [ScriptedNode("Porto", labels=labels), ScriptedNode("Riga", labels=other_order), external]
    run_federation(centres, settings={"heterogeneous_tasks": True})
    assert list(external.kept) == ["Porto"]


TASKS = {"Porto": {"background": 0, "liver": 1}, "Riga": {"background": 0, "spleen": 1}}
WITH_HEAD = {"encoder": [4, 3], "decoder.seg_layers.0.weight": [2, 4, 1, 1]}


def test_heads_of_unlike_labels_are_not_averaged_because_they_have_one_shape(run_federation: RunFederation) -> None:
    centres = [ScriptedNode(name, WITH_HEAD, labels=labels) for name, labels in TASKS.items()]
    with pytest.raises(ConfigError, match=r"nodes Porto and Riga have unlike labels.*keep_local=\[seg_layers\]"):
        run_federation(centres, settings={"heterogeneous_tasks": True})
    assert not centres[0].requests_of(Kind.TRAIN)


def test_heads_of_unlike_labels_may_stay_local(run_federation: RunFederation) -> None:
    centres = [ScriptedNode(name, WITH_HEAD, labels=labels) for name, labels in TASKS.items()]
    run = run_federation(centres, AsymFedAvg(keep_local=["seg_layers"]), {"heterogeneous_tasks": True})
    porto, riga = (run.nodes[name].final[0] for name in TASKS)
    assert np.array_equal(porto["encoder"], riga["encoder"])
    assert not np.array_equal(porto["decoder.seg_layers.0.weight"], riga["decoder.seg_layers.0.weight"])


def test_first_layers_of_unlike_channels_are_averaged_and_named(run_federation: RunFederation) -> None:
    channels = {"Porto": {"0": "T1"}, "Riga": {"0": "T2"}}
    first = {"encoder": [4, 1, 3], "head": [5]}
    centres = [ScriptedNode(name, first, channel_names=names) for name, names in channels.items()]
    run = run_federation(centres, settings={"heterogeneous_tasks": True})
    assert [line for line in run.messages if "have unlike channels (T1; T2)" in line]
    run = run_federation(centres, NoExchange(), {"heterogeneous_tasks": True})
    assert not run.messages


@pytest.mark.parametrize("keep_local", [[], ["encoder"]])
def test_first_layers_of_unlike_channels_that_are_not_averaged_are_not_named(
    run_federation: RunFederation, keep_local: list[str]
) -> None:
    kernel = 5 if not keep_local else 3
    centres = [
        ScriptedNode("Porto", {"encoder.0": [4, 1, 3], "decoder": [2, 4]}, channel_names={"0": "T1"}),
        ScriptedNode("Riga", {"encoder.0": [4, 1, kernel], "decoder": [2, 4]}, channel_names={"0": "T2"}),
    ]
    run = run_federation(centres, AsymFedAvg(keep_local=keep_local), {"heterogeneous_tasks": True})
    assert not [line for line in run.messages if "unlike channels" in line]


# what is exchanged -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FLOWER, "asym", "ffe"])
def test_nodes_end_with_one_model(run_federation: RunFederation, tmp_path: Path, name: str) -> None:
    strategy = configured(tmp_path, f"strategy={name}").strategy
    settings = {"fingerprint": "histogram" if strategy.plan_from == "federated" else None}
    run = run_federation(nodes(), instantiate(strategy.aggregation), settings)
    assert run.messages == []
    assert run.rows == [(r, node) for r in (1, 2, 3) for node in sorted(NODES)]
    finals = [node.final[0] for node in run.nodes.values()]
    assert all(same(finals[0], other) for other in finals[1:])
    kept = [node.name for node in run.nodes.values() if same(finals[0], node.sent[0, 3])]
    assert len(kept) == (name == "krum"), "it chooses one node's layers; the others average"
    assert all(np.isfinite(array).all() for array in finals[0].values())


def test_local_nodes_receive_nothing(run_federation: RunFederation) -> None:
    run = run_federation(nodes(), NoExchange())
    for node in run.nodes.values():
        assert not any(node.received.values())
        assert not any(request.layers for request in node.requests_of(Kind.TRAIN))


UNET = {
    "encoder.stages.0.convs.0.conv.weight": [4, 1, 3, 3],
    "encoder.stages.0.convs.0.norm.weight": [4],
    "decoder.seg_layers.0.weight": [2, 4, 1, 1],
}


def test_what_is_kept_local_is_not_exchanged(run_federation: RunFederation, tmp_path: Path) -> None:
    strategy = instantiate(
        configured(tmp_path, "strategy=ffe", "strategy.aggregation.keep_local=[seg_layers,norm]").strategy.aggregation
    )
    run = run_federation([ScriptedNode(name, UNET) for name in NODES], strategy, {"fingerprint": "histogram"})
    shared, *kept = UNET
    for node in run.nodes.values():
        assert {tuple(request.layers) for request in node.requests_of(Kind.TRAIN)} == {(shared,)}
        assert all(set(state) == {shared} for state in node.received.values() if state)
    ours, theirs = (run.nodes[name].final[0] for name in ("Riga", "Porto"))
    assert np.array_equal(ours[shared], theirs[shared])
    for layer in kept:
        assert not np.array_equal(ours[layer], theirs[layer]), layer


def unet(stages: int) -> dict[str, list[int]]:
    """Layers of a network with so many resolutions; its last head is that of the full resolution."""
    encoder = {f"encoder.stages.{stage}.0.convs.0.conv.weight": [4, 4, 3, 3] for stage in range(stages)}
    heads = {f"decoder.seg_layers.{stage}.weight": [2, 4, 1, 1] for stage in range(stages - 1)}
    return encoder | heads


def test_layers_matched_by_resolution(run_federation: RunFederation) -> None:
    large, small = ScriptedNode("Porto", unet(5)), ScriptedNode("Riga", unet(4))
    run_federation([large, small], AsymFedAvg(matching="resolution", average_over="groups"))
    head = large.final[0]["decoder.seg_layers.3.weight"], small.final[0]["decoder.seg_layers.2.weight"]
    assert np.array_equal(*head), "the heads of the full resolution are one"
    assert not np.array_equal(large.final[0]["decoder.seg_layers.2.weight"], head[0])


def test_all_nodes_begin_with_the_same_values_whatever_their_order(
    run_federation: RunFederation, tmp_path: Path
) -> None:
    """Also where their networks differ, and each has initialised its own."""
    layers = {"Oslo": unet(4), "Porto": unet(5)}
    began = []
    for number, order in enumerate((("Oslo", "Porto"), ("Porto", "Oslo"))):
        members = [ScriptedNode(name, layers[name]) for name in order]
        run = run_federation(members, folder=tmp_path / str(number))
        began.append({name: run.nodes[name].received[0, 1] for name in order})
    once, again = began
    assert once["Oslo"]
    assert same(once["Oslo"], once["Porto"])
    assert all(same(once[name], again[name]) for name in layers)


# rounds ------------------------------------------------------------------------------------------------


def test_several_epochs_per_round(run_federation: RunFederation) -> None:
    """Five epochs, two per round: three rounds; the node makes the last of one epoch."""
    run = run_federation(nodes(epochs=5), settings={"local_epochs": 2})
    assert sorted(run.rounds["round"].unique()) == [1, 2, 3]
    assert run.training == {"rounds": 3, "iterations": 2}, "for run.json: iterations of a round, two epochs of one"
    for node in run.nodes.values():
        trained = [(request.server_round, request.epochs) for request in node.requests_of(Kind.TRAIN)]
        assert [pair for pair in trained if pair[0]] == [(1, 2), (2, 2), (3, 2)]


def test_some_nodes_per_round(run_federation: RunFederation) -> None:
    """Two of three nodes in each of five rounds."""
    run = run_federation(nodes(epochs=5), AsymFedAvg(fraction_train=0.6))
    assert run.rounds.groupby("round").node.nunique().to_dict() == dict.fromkeys(range(1, 6), 2)
    assert set(run.cases.node) == set(NODES)
    for name, node in run.nodes.items():
        mine = sorted(run.rounds[run.rounds.node == name]["round"])
        requests = [request for request in node.requests_of(Kind.TRAIN) if request.server_round]
        assert [request.server_round for request in requests] == mine
        assert [request.trained for request in requests] == [0, *mine][:-1], "what it goes on from"
        assert node.requests_of(Kind.EVALUATE)[0].trained == mine[-1]
    for server_round in range(1, 6):
        members = run.rounds[run.rounds["round"] == server_round].node
        average = run.mean_of(server_round, *members)
        after = [node.received.get((0, server_round + 1)) for node in run.nodes.values()]
        assert all(same(state, average) for state in after if state is not None)
    finals = [node.final[0] for node in run.nodes.values()]
    assert all(same(finals[0], other) for other in finals), "who was not in the last round has its average, too"


# who is missing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [end_worker, fail_with_reason("its disk is gone")], ids=["killed", "fails"])
def test_a_federation_goes_on_without_a_node_while_enough_are_in(run_federation: RunFederation, fault: object) -> None:
    external = ScriptedNode("Oslo", cases=0)
    faults = {"Porto": Fault("", worker=fault)}  # type: ignore[arg-type]
    run = run_federation([*nodes(), external], settings={"min_nodes": 2}, faults=faults)
    said = [message for message in run.messages if message.startswith("node Porto: ")]
    assert said
    assert all(message.endswith("the federation goes on without it") for message in said)
    assert same(run.average_after(2), run.mean_of(2, "Riga", "Turku"))
    assert {node for r, node in run.rows if r == 2} == {"Riga", "Turku"}
    if fault is end_worker:
        assert {node for r, node in run.rows if r == 3} == {"Riga", "Turku"}
        assert set(run.cases.node) == {"Riga", "Turku", "Oslo"}
    else:
        assert {node for r, node in run.rows if r == 3} == set(NODES), "it is asked again in the next round"


def test_a_worker_that_is_killed_ends_the_run_by_name_where_all_are_needed(run_federation: RunFederation) -> None:
    with pytest.raises(FednnUNetError, match="node Porto: "):
        run_federation(nodes(), faults={"Porto": Fault("", worker=end_worker)})


# folds that hold no case out ---------------------------------------------------------------------------


def few_and_many() -> list[ScriptedNode]:
    """Porto holds a case out in fold 0 alone, Riga in both."""
    held_out = {"Porto": {0: 1, 1: 0}, "Riga": {0: 1, 1: 1}}
    return [ScriptedNode(name, held_out={name: folds}) for name, folds in held_out.items()]


def test_a_centre_trains_in_a_fold_that_holds_no_case_of_it_out(run_federation: RunFederation) -> None:
    run = run_federation(few_and_many(), settings={"folds": [0, 1], "cross_centre": True})
    assert run.messages == [
        "centre Porto holds no case out in fold 1: it trains on all of its cases there, and is not scored"
    ]
    for fold in (0, 1):
        assert same(run.average_after(3, fold), run.mean_of(3, "Porto", "Riga", fold=fold))
    scored = set(zip(run.cases["fold"], run.cases["node"], run.cases["model"], strict=True))
    at_riga = {(fold, "Riga", model) for fold in "01" for model in ("Porto", "Riga")}
    assert scored == at_riga | {("0", "Porto", "Porto"), ("0", "Porto", "Riga")}


def test_after_resuming_its_model_of_that_fold_still_counts_at_external_centres(
    run_federation: RunFederation,
) -> None:
    *_, external = members = [*few_and_many(), ScriptedNode("Turku", cases=0)]
    stopped = Fault("", fail_with_reason("the power is gone"), kind=Kind.SCORE_MODELS)
    with pytest.raises(FednnUNetError, match="node Turku: the power is gone"):
        run_federation(members, NoExchange(), {"folds": [0, 1]}, {"Turku": stopped})
    external.requests.clear()
    run_federation(members, NoExchange(), {"folds": [0, 1]})
    (request,) = external.requests_of(Kind.SCORE_MODELS)
    assert request.models == {"Porto": [0, 1], "Riga": [0, 1]}


def test_a_fold_that_no_centre_would_be_scored_in_is_refused(run_federation: RunFederation) -> None:
    few = [ScriptedNode(name, held_out={name: {3: 0}}) for name in ("Porto", "Riga")]
    with pytest.raises(DataError, match="no centre holds a case out in fold 3: nothing would be scored"):
        run_federation(few, settings={"folds": [3]})
    run = run_federation([*few, ScriptedNode("Turku", cases=0)], settings={"folds": [3]})
    assert set(run.cases["node"]) == {"Turku"}


def test_a_node_that_describes_another_nodes_cases_is_named(run_federation: RunFederation) -> None:
    with pytest.raises(FednnUNetError, match="node Porto: describes cases of node Riga"):
        run_federation([ScriptedNode("Porto", held_out={"Riga": {0: 0}}), ScriptedNode("Riga")])


# resuming ----------------------------------------------------------------------------------------------


Start = Callable[[Path, Sequence[ScriptedNode], Mapping[str, Fault]], FinishedRun]


def interrupt_and_resume(start: Start, folder: Path, members: Sequence[ScriptedNode], at: str) -> FinishedRun:
    """A run that ends in a round, and is resumed; nodes keep only the requests after that."""
    power_cut = Fault("", worker=fail_with_reason("the power is gone"), of=at)
    with pytest.raises(FednnUNetError, match="node Porto: the power is gone"):
        start(folder, members, {"Porto": power_cut})
    for node in members:
        node.requests.clear()
    return start(folder, members, {})


INTERRUPTED = {
    "asym": (5, ("strategy=asym",)),
    "bfloat16": (5, ("strategy=asym", "exchange.dtype=bfloat16")),
    "int8": (5, ("strategy=asym", "exchange.dtype=int8")),
    "int4, momenta": (5, ("strategy=fedavgm", "exchange.dtype=int4")),
    "fedadam": (8, ("strategy=fedadam", "strategy.local_epochs=2")),
    "fedavgm": (5, ("strategy=fedavgm",)),
    "two of three nodes per round": (6, ("strategy=asym", "strategy.aggregation.fraction_train=0.6")),
}


@pytest.mark.parametrize(("epochs", "overrides"), INTERRUPTED.values(), ids=INTERRUPTED)
def test_an_interrupted_run_is_resumed_to_the_same_result(
    run_federation: RunFederation, tmp_path: Path, epochs: int, overrides: tuple[str, ...]
) -> None:
    config = configured(tmp_path, *overrides)
    settings = {"dtype": config.exchange.dtype, "local_epochs": config.strategy.local_epochs}

    def start(folder: Path, members: Sequence[ScriptedNode], faults: Mapping[str, Fault]) -> FinishedRun:
        return run_federation(members, instantiate(config.strategy.aggregation), settings, faults, folder=folder)

    at = "4" if "fraction_train" in overrides[-1] else "3"  # a round that Porto is in
    ours = interrupt_and_resume(start, tmp_path / "interrupted", nodes(epochs), at)
    theirs = start(tmp_path / "whole", nodes(epochs), {})
    assert ours.rows == theirs.rows
    for name, node in theirs.nodes.items():
        assert same(ours.nodes[name].final[0], node.final[0]), name
    assert (ours.folder / "cases.csv").read_text() == (theirs.folder / "cases.csv").read_text()


DAMAGED: dict[str, tuple[tuple[str, ...], dict[str, list[int]], int, str]] = {
    "a round that all have": (
        ("strategy=asym",),
        {"Riga": [2, 3], "Porto": [2, 4]},
        2,
        "fold 0 goes on from round 2: no sound checkpoint of round 4 at Riga; of round 3 at Porto",
    ),
    "and the server, momenta": (
        ("strategy=fedavgm",),
        {"Riga": [2, 3], "Porto": [2, 4]},
        2,
        "fold 0 goes on from round 2: no sound checkpoint of round 4 at Riga; of round 3 at Porto",
    ),
    "no such round": (
        ("strategy=asym",),
        {"Riga": [2], "Porto": [3, 4]},
        0,
        "fold 0 begins anew: no sound checkpoint of round 4 at Riga; of round 3 at Riga; of round 2 at Porto; …",
    ),
}


@pytest.mark.parametrize(("overrides", "sound", "last", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_run_goes_on_from_the_newest_round_that_all_nodes_have(
    run_federation: RunFederation,
    tmp_path: Path,
    overrides: tuple[str, ...],
    sound: dict[str, list[int]],
    last: int,
    said: str,
) -> None:
    """Checkpoints of different rounds are damaged at two nodes."""
    config = configured(tmp_path, *overrides)

    def start(folder: Path, members: Sequence[ScriptedNode], faults: Mapping[str, Fault]) -> FinishedRun:
        return run_federation(members, instantiate(config.strategy.aggregation), {}, faults, folder=folder)

    ours, folder = nodes(epochs=5), tmp_path / "damaged"
    power_cut = Fault("", worker=fail_with_reason("the power is gone"), of="5")
    with pytest.raises(FednnUNetError, match="the power is gone"):
        start(folder, ours, {"Porto": power_cut})
    before = (folder / "rounds.csv").read_text()
    for node in ours:
        node.requests.clear()
        if node.name in sound:
            node.introduction["resume_rounds"] = {0: sound[node.name]}
    with pytest.raises(FednnUNetError, match="gone again"):
        start(folder, ours, {"Porto": Fault("", worker=fail_with_reason("gone again"), of=str(last + 1))})
    assert (folder / "rounds.csv").read_text() == before, "no row is removed before it is replaced"
    run = start(folder, ours, {})
    assert said in run.messages
    asked = [body for body in run.nodes["Turku"].requests_of(Kind.TRAIN) if body.server_round]
    assert asked[0].trained == last
    whole = start(tmp_path / "whole", nodes(epochs=5), {})
    assert run.rows == whole.rows
    assert all(same(run.nodes[name].final[0], node.final[0]) for name, node in whole.nodes.items())


def test_a_damaged_file_of_the_server_is_not_gone_on_from(run_federation: RunFederation, tmp_path: Path) -> None:
    config = configured(tmp_path, "strategy=fedavgm")

    def start(folder: Path, members: Sequence[ScriptedNode], faults: Mapping[str, Fault]) -> FinishedRun:
        return run_federation(members, instantiate(config.strategy.aggregation), {}, faults, folder=folder)

    members, folder = nodes(epochs=5), tmp_path / "damaged"
    with pytest.raises(FednnUNetError, match="the power is gone"):
        start(folder, members, {"Porto": Fault("", worker=fail_with_reason("the power is gone"), of="5")})
    newest = folder / "strategy_fold_0_round_4.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    run = start(folder, members, {})
    assert "fold 0 goes on from round 3: no sound checkpoint of round 4 at the server" in run.messages
    whole = start(tmp_path / "whole", nodes(epochs=5), {})
    assert all(same(run.nodes[name].final[0], node.final[0]) for name, node in whole.nodes.items())


def test_a_finished_fold_is_not_trained_again(run_federation: RunFederation, tmp_path: Path) -> None:
    def start(folder: Path, members: Sequence[ScriptedNode], faults: Mapping[str, Fault]) -> FinishedRun:
        return run_federation(members, None, {"folds": [0, 1]}, faults, folder=folder)

    ours = interrupt_and_resume(start, tmp_path / "interrupted", nodes(), "1/2")
    theirs = start(tmp_path / "whole", nodes(), {})
    for kind in (Kind.TRAIN, Kind.EVALUATE):
        assert {request.fold for node in ours.nodes.values() for request in node.requests_of(kind)} == {1}
    assert (ours.folder / "cases.csv").read_text() == (theirs.folder / "cases.csv").read_text()
    assert set(ours.cases.fold) == {"0", "1"}
    columns = ["round", "node", "fold"]
    assert ours.rounds[columns].equals(theirs.rounds[columns])
