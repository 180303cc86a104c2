"""Which layers nodes exchange, under their own names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from fednnunet.errors import ConfigError
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.layer_groups import LayerGroups
from fednnunet.server.strategy.layer_matching import Shapes, match_layers

LAYERS = {
    1: {"encoder.norm.weight": [3], "head.weight": [2], "own": [5]},
    2: {"encoder.norm.weight": [3], "head.weight": [4]},
    3: {"encoder.norm.weight": [3], "head.weight": [2]},
}


def grouped(**options: list[str]) -> LayerGroups:
    return LayerGroups(LAYERS, match_layers(LAYERS, average_over="groups"), **options)


def test_layers_of_one_name_and_shape_are_one_group() -> None:
    groups = grouped()
    assert groups.names == ["encoder.norm.weight", "head.weight@2"]
    assert [groups.layers_of(node) for node in groups.nodes] == [
        ["encoder.norm.weight", "head.weight"],
        ["encoder.norm.weight"],
        ["encoder.norm.weight", "head.weight"],
    ]
    assert groups.group_of(1, "head.weight") == groups.group_of(3, "head.weight") == "head.weight@2"
    assert groups.shapes_of(3) == {"encoder.norm.weight": (3,), "head.weight": (2,)}
    assert groups.shared_fraction() == {1: 0.5, 2: 3 / 7, 3: 1.0}


def test_a_node_gets_the_arrays_of_its_groups_under_its_own_names() -> None:
    arrays = to_array_record({"encoder.norm.weight": np.zeros(3), "head.weight@2": np.ones(2)})
    assert list(grouped().arrays_for(2, arrays)) == ["encoder.norm.weight"]
    mine = from_array_record(grouped().arrays_for(1, arrays), "a test")
    assert list(mine) == ["encoder.norm.weight", "head.weight"]
    assert np.array_equal(mine["head.weight"], np.ones(2))
    del arrays["head.weight@2"]
    assert list(grouped().arrays_for(1, arrays)) == ["encoder.norm.weight"], "before anything was averaged in it"


def test_layers_with_a_part_that_is_kept_stay_local() -> None:
    assert grouped(keep_local=["norm"]).names == ["head.weight@2"]
    assert grouped(keep_local=["norm", "head"]).names == []
    with pytest.raises(ConfigError, match=r"aggregation\.keep_local: no layer has the part nor; .* norm, own"):
        grouped(keep_local=["nor"])


@pytest.mark.parametrize(("nodes", "expected"), [([1, 3], False), ([1, 2], False), ([3], True), ([3, 4], True)])
def test_nodes_end_with_one_model_if_every_layer_of_theirs_is_averaged(nodes: list[int], expected: bool) -> None:
    layers = {**LAYERS, 4: LAYERS[3]}
    groups = LayerGroups(layers, match_layers(layers, average_over="groups"))
    assert groups.cover_all_layers(nodes) == expected


def test_what_one_node_trains_and_another_does_not_is_not_averaged() -> None:
    layers = {1: {"norm": [2]}, 2: {"norm": [2]}}
    with pytest.raises(ConfigError, match=r"norm of node Oslo is a buffer .*, norm of node Porto is trained"):
        AsymFedAvg().prepare(layers, {1: "Oslo", 2: "Porto"}, buffers={1: ["norm"], 2: []})


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ({1: {}, 2: {}}, "node Lund is missing; one without shared layers has {}"),
        ({1: {}, 2: {}, 3: {}, 4: {}}, "node 4 is not part of this run"),
        ({1: {}, 2: {"own": "own"}, 3: {}}, "node Porto has no layer own"),
        (
            {1: {"encoder.norm.weight": "g", "head.weight": "g"}, 2: {}, 3: {}},
            "layers encoder.norm.weight and head.weight of node Oslo are both in group g",
        ),
        (
            {1: {"head.weight": "head"}, 2: {"head.weight": "head"}, 3: {}},
            "layer head.weight of node Porto has shape (4,); others in group head have (2,)",
        ),
    ],
)
def test_groups_that_cannot_be_combined_are_refused(groups: dict[int, dict[str, str]], problem: str) -> None:
    class Own(AsymFedAvg):
        def match_layers(self, layers: Mapping[int, Shapes]) -> Mapping[int, Mapping[str, str]]:
            return groups

    with pytest.raises(ConfigError) as caught:
        Own().prepare(LAYERS, {1: "Oslo", 2: "Porto", 3: "Lund"})
    assert str(caught.value) == f"Own.match_layers: {problem}"
