"""One network for all labels of the nodes: what the server asks, says, writes and refuses; over real messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fednnunet.errors import DataError, FednnUNetError
from fednnunet.exchange.messages import Kind
from fednnunet.server.strategy.no_exchange import NoExchange
from tests.support.scripted_federation import (
    Fault,
    FinishedRun,
    RunFederation,
    ScriptedNode,
    end_worker,
    fail_with_reason,
)

UNION = {"labels": "union"}
LABELS = {
    "Oslo": {"background": 0, "liver": 1, "spleen": 2},
    "Porto": {"background": 0, "aorta": 1, "liver": 2},
    "Riga": {"background": 0, "aorta": 1, "liver": 2, "spleen": 3},
    "Turku": {"background": 0, "kidney": 1},
}
"""One name under two values, one value under two names, a node with all of others, a label that nobody else has."""
VALUES = {"background": 0, "aorta": 1, "kidney": 2, "liver": 3, "spleen": 4}


def nodes(labels: Mapping[str, Mapping[str, Any]], external: Sequence[str] = ()) -> list[ScriptedNode]:
    """Nodes of these labels, that exchange one encoder and a head of five classes."""
    return [
        ScriptedNode(
            name,
            {"encoder": [4, 3], "head.weight": [5, 3], "head.bias": [5]},
            cases=0 if name in external else 5,
            heads=["head.weight", "head.bias"],
            labels=own,
        )
        for name, own in labels.items()
    ]


def told(run: FinishedRun, kind: Kind) -> dict[str, Any]:
    return {name: body.labels for name, node in run.nodes.items() for body in node.requests_of(kind)}


def test_every_training_node_plans_for_all_labels(run_federation: RunFederation) -> None:
    run = run_federation(nodes(LABELS), settings=UNION)
    assert told(run, Kind.PLAN) == dict.fromkeys(LABELS, VALUES)
    assert (run.folder / "labels.csv").read_text().splitlines() == [
        "label,value,Oslo,Porto,Riga,Turku",
        "background,0,yes,yes,yes,yes",
        "aorta,1,,yes,yes,",
        "kidney,2,,,,yes",
        "liver,3,yes,yes,yes,",
        "spleen,4,yes,,yes,",
    ]
    assert run.messages == [
        "node Turku has no label in common with another node (kidney); if others call it otherwise: "
        "task.rename_labels.Turku"
    ]


def test_with_the_federated_fingerprint_too(run_federation: RunFederation) -> None:
    run = run_federation(nodes(LABELS), settings={**UNION, "fingerprint": "histogram"})
    assert told(run, Kind.PLAN) == dict.fromkeys(LABELS, VALUES)


def test_nothing_is_told_where_all_have_the_same_labels(run_federation: RunFederation) -> None:
    same = {"background": 0, "spleen": 1, "liver": 2}
    run = run_federation(nodes({"Oslo": same, "Porto": same, "Riga": same}, external=["Riga"]), settings=UNION)
    assert told(run, Kind.PLAN) == {"Oslo": None, "Porto": None}
    assert told(run, Kind.SCORE_MODELS) == {"Riga": None}
    assert run.messages == []


def test_an_external_node_scores_every_model_by_the_networks_labels(run_federation: RunFederation) -> None:
    centres = nodes({**LABELS, "Vigo": {"background": 0, "liver": 1, "lung": 2, "ignore": 3}}, external=["Vigo"])
    run = run_federation(centres, NoExchange(), UNION)
    (request,) = run.nodes["Vigo"].requests_of(Kind.SCORE_MODELS)
    assert request.labels == {**VALUES, "ignore": 5}
    assert set(request.models) == set(LABELS)
    assert "external node Vigo: no training node has lung; it is not scored" in run.messages
    assert (run.folder / "labels.csv").read_text().splitlines()[4] == "liver,3,yes,yes,yes,,yes"


def test_nodes_score_the_models_of_all_others(run_federation: RunFederation) -> None:
    run = run_federation(nodes(LABELS), NoExchange(), {**UNION, "cross_centre": True})
    assert {name: sorted(node.kept) for name, node in run.nodes.items()} == {
        name: sorted(LABELS.keys() - {name}) for name in LABELS
    }
    assert told(run, Kind.SCORE_MODELS) == dict.fromkeys(LABELS)


def test_names_that_may_mean_one_structure_are_said(run_federation: RunFederation) -> None:
    labels = {
        "Oslo": {"background": 0, "liver": 1, "tumor": 2},
        "Porto": {"background": 0, "liver": 1, "tumour": 2},
        "Riga": {"background": 0, "Liver": 1, "aorta": 2, "vein": 3},
    }
    layers = {"head": [7, 2]}
    run = run_federation(
        [ScriptedNode(n, layers, heads=["head"], labels=own) for n, own in labels.items()], None, UNION
    )
    assert run.messages == [
        "labels Liver (Riga) and liver (Oslo, Porto) may be one structure: task.rename_labels",
        "labels tumor (Oslo) and tumour (Porto) may be one structure: task.rename_labels",
        "node Riga has no label in common with another node (Liver, aorta, vein); if others call it otherwise: "
        "task.rename_labels.Riga",
    ]


def test_a_label_whose_last_node_has_left_is_named(run_federation: RunFederation) -> None:
    faults = {"Turku": Fault("", worker=end_worker, kind=Kind.PREPROCESS)}
    run = run_federation(nodes(LABELS), settings={**UNION, "min_nodes": 2}, faults=faults)
    assert run.messages[-1] == "no training node of this run annotates kidney: the network does not learn it"


def test_a_run_goes_on_with_the_labels_that_it_began_with(run_federation: RunFederation) -> None:
    """Also without the only node of one of them: the others' networks have its output."""
    centres = nodes(LABELS)
    with pytest.raises(FednnUNetError, match="node Porto: the power is gone"):
        run_federation(centres, None, UNION, {"Porto": Fault("", worker=fail_with_reason("the power is gone"))})
    *left, _ = centres
    for node in left:
        node.requests.clear()
    run = run_federation(left, None, UNION)
    assert told(run, Kind.PLAN) == {"Oslo": VALUES, "Porto": VALUES, "Riga": VALUES}
    assert run.messages == ["no training node of this run annotates kidney: the network does not learn it"]


def test_a_node_with_a_new_label_cannot_join_a_run_that_goes_on(run_federation: RunFederation) -> None:
    centres = nodes({name: LABELS[name] for name in ("Oslo", "Porto")})
    for node in centres:
        node.layers = {"head.weight": [4, 3], "head.bias": [4]}
    with pytest.raises(FednnUNetError, match="node Porto: the power is gone"):
        run_federation(centres, None, UNION, {"Porto": Fault("", worker=fail_with_reason("the power is gone"))})
    with pytest.raises(DataError, match=r"^node Turku: labels in dataset.json: kidney is not among the labels that"):
        run_federation([*centres, *nodes({"Turku": LABELS["Turku"]})], None, UNION)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (
            {"background": 0, "whole": [1, 2], "core": 1},
            "node Porto: labels in dataset.json: whole is a region; .* give each structure its own, or leave ",
        ),
        ({"background": 0, "aorta": 1, "liver": 1}, "node Porto: labels in dataset.json: aorta and liver both have"),
    ],
)
def test_a_node_whose_labels_cannot_be_united_is_named_before_it_plans(
    run_federation: RunFederation, labels: dict[str, Any], problem: str
) -> None:
    centres = nodes({"Oslo": LABELS["Oslo"], "Porto": labels})
    with pytest.raises(DataError, match=f"^{problem}"):
        run_federation(centres, settings=UNION)
    assert not centres[0].requests_of(Kind.PLAN)


def test_an_external_node_of_other_labels_is_refused(run_federation: RunFederation) -> None:
    centres = nodes({"Oslo": LABELS["Oslo"], "Porto": LABELS["Porto"], "Turku": LABELS["Turku"]}, external=["Turku"])
    problem = (
        "^external node Turku: labels in dataset.json: no training node has one of kidney; see task.rename_labels$"
    )
    with pytest.raises(DataError, match=problem):
        run_federation(centres, settings=UNION)


def test_channels_are_not_united(run_federation: RunFederation) -> None:
    oslo, porto = nodes({"Oslo": LABELS["Oslo"], "Porto": LABELS["Porto"]})
    porto.introduction["channel_names"] = {"0": "MR"}
    with pytest.raises(DataError, match=r"disagree on channel_names .*task.labels=union does not merge channels"):
        run_federation([oslo, porto], settings=UNION)


def test_without_union_unlike_labels_are_refused_as_before(run_federation: RunFederation) -> None:
    with pytest.raises(DataError, match=r"nodes Oslo and Porto disagree on labels in dataset.json"):
        run_federation(nodes({"Oslo": LABELS["Oslo"], "Porto": LABELS["Porto"]}))
