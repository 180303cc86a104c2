"""Networks that share too little to learn all labels or channels: what the server says, and how models are scored."""

from __future__ import annotations

import pytest

from fednnunet.exchange.messages import Kind, Model
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.no_exchange import NoExchange
from tests.server.phases import test_channels as channels
from tests.server.phases import test_labels as labels
from tests.support.scripted_federation import RunFederation, ScriptedNode

ORGANS = {"Oslo": "liver", "Porto": "spleen", "Riga": "kidney"}


def of_one_organ(name: str, features: int) -> ScriptedNode:
    """Two heads: that of the full resolution, which is the last, has so many features."""
    layers = {"heads.0.weight": [4, 9], "heads.0.bias": [4], "heads.1.weight": [4, features], "heads.1.bias": [4]}
    return ScriptedNode(name, layers, heads=list(layers), labels={"background": 0, ORGANS[name]: 1})


def of_channels(has: dict[str, tuple[str, ...]], external: tuple[str, ...] = ()) -> list[ScriptedNode]:
    """Nodes whose first layer takes T1 and T2."""
    nodes = channels.nodes(has, external)
    for node in nodes:
        node.layers = {"encoder.weight": [3, 2, 1, 1], "encoder.bias": [3]}
    return nodes


def told(messages: list[str]) -> list[str]:
    return [message for message in messages if "averaged with that of no node" in message]


def test_labels_of_a_head_that_is_shared_with_nobody_who_annotates_them_are_named(
    run_federation: RunFederation,
) -> None:
    run = run_federation([of_one_organ(name, 5 if name == "Riga" else 3) for name in ORGANS], None, labels.UNION)
    head = "the head of its network, heads.1.weight and heads.1.bias, is averaged with that of no node that annotates"
    end = "what its model segments as such means nothing (strategy=ffe shares all layers)"
    assert told(run.messages) == [
        f"node Oslo: {head} kidney, spleen: {end}",
        f"node Porto: {head} kidney, liver: {end}",
        f"node Riga: {head} liver, spleen: {end}",
    ]


def test_groups_of_nodes_learn_each_others_labels(run_federation: RunFederation) -> None:
    run = run_federation(
        [of_one_organ(name, 5 if name == "Riga" else 3) for name in ORGANS],
        AsymFedAvg(average_over="groups"),
        labels.UNION,
    )
    assert [message.split(": what")[0].rpartition("annotates ")[2] for message in told(run.messages)] == [
        "kidney",
        "kidney",
        "liver, spleen",
    ]


def test_nothing_is_said_where_all_share_their_heads(run_federation: RunFederation) -> None:
    assert not told(run_federation([of_one_organ(name, 3) for name in ORGANS], None, labels.UNION).messages)


def test_nodes_by_themselves_learn_their_own(run_federation: RunFederation) -> None:
    run = run_federation([of_one_organ(name, 3) for name in ORGANS], NoExchange(), labels.UNION)
    assert len(told(run.messages)) == len(ORGANS)


@pytest.mark.parametrize("receives", [True, False])
def test_a_node_without_time_for_pseudo_labels_of_all_its_cases_is_named(
    run_federation: RunFederation, receives: bool
) -> None:
    nodes = [ScriptedNode("Oslo", labellings=0.25), ScriptedNode("Porto", labellings=1.0), ScriptedNode("Riga")]
    run = run_federation(nodes, None if receives else NoExchange())
    found = [message for message in run.messages if "task.pseudo_labels" in message]
    assert len(found) == receives
    assert all(one.startswith("node Oslo: training has time for pseudo-labels of 25% of its cases") for one in found)


def test_models_are_scored_without_channels_that_they_have_not_learnt(run_federation: RunFederation) -> None:
    has = {"Oslo": ("T2", "T1"), "Porto": ("T1",), "Vigo": ("T2", "T1")}
    run = run_federation(of_channels(has, external=("Vigo",)), NoExchange(), channels.UNION)
    kept = {body.node: body.unlearnt for body in run.nodes["Vigo"].requests if isinstance(body, Model)}
    assert kept == {"Oslo": [], "Porto": ["T2"]}
    assert told(run.messages) == [
        "node Porto: the first layer of its network is averaged with that of no node that has T2: its model has not "
        "learnt to use it, and is scored with zeros there; give it zeros, too"
    ]


def test_models_that_share_the_first_layer_use_all_channels(run_federation: RunFederation) -> None:
    has = {"Oslo": ("T2", "T1"), "Porto": ("T1",)}
    run = run_federation(of_channels(has), None, {**channels.UNION, "cross_centre": True})
    assert not told(run.messages)
    assert run.nodes["Oslo"].requests_of(Kind.PLAN)
    assert all(not body.unlearnt for node in run.nodes.values() for body in node.requests if isinstance(body, Model))
