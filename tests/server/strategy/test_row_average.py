"""Heads are averaged class by class, over the nodes that annotate the class; numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from fednnunet.errors import ConfigError
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.averaging import StreamingAverage
from fednnunet.server.strategy.layer_groups import LayerGroups
from fednnunet.server.strategy.layer_matching import match_layers
from fednnunet.server.strategy.row_average import RowAverage

NAMES = {1: "Oslo", 2: "Porto", 3: "Riga"}
CASES = {1: 10, 2: 30, 3: 60}
ANNOTATED = {
    1: [True, True, False, False],
    2: [True, True, True, True],
    3: [True, False, False, True],
}
"""Background and three classes: the second has one annotator, Porto, which annotates all."""
VALUES = {1: 1.0, 2: 2.0, 3: 6.0}
"""Every value of a node's head."""
LAYERS = {"encoder": [2], "head.weight": [4, 3, 1, 1], "head.bias": [4]}
HEADS = ("head.weight", "head.bias")


def row_average(
    layers: Mapping[int, Mapping[str, Sequence[int]]] | None = None, keep_local: Sequence[str] = ()
) -> RowAverage:
    shapes = layers or dict.fromkeys(NAMES, LAYERS)
    groups = LayerGroups(shapes, match_layers(shapes), keep_local)
    return RowAverage(groups, {node: dict.fromkeys(HEADS, rows) for node, rows in ANNOTATED.items()}, NAMES)


def heads(value: float, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {name: np.full(LAYERS[name], value, dtype) for name in HEADS}


def means(
    rows: RowAverage, nodes: Sequence[int], weights: Mapping[int, float], start: Mapping[str, np.ndarray]
) -> list[float]:
    """The mean of each class: one number, as all values of a row are the same."""
    rows.reset(start)
    for node in nodes:
        rows.add(node, {**heads(VALUES[node]), "encoder": np.zeros(2, np.float32)}, weights[node])
    result = rows.result()
    assert {name: array.shape for name, array in result.items()} == {n: tuple(LAYERS[n]) for n in HEADS}
    assert np.array_equal(result["head.weight"].reshape(4, 3), np.repeat(result["head.bias"][:, None], 3, axis=1))
    assert result["head.bias"].dtype == np.float32
    return result["head.bias"].tolist()


def test_rows_are_averaged_over_their_annotators_and_background_over_all() -> None:
    # (1 + 2 + 6) / 3; (1 + 2) / 2; Porto's own; (2 + 6) / 2
    assert means(row_average(), [1, 2, 3], dict.fromkeys(NAMES, 1), heads(-1)) == [3, 1.5, 2, 4]


def test_rows_are_weighted_as_other_layers() -> None:
    # (10 + 60 + 360) / 100; (10 + 60) / 40; Porto's own; (60 + 360) / 90
    expected = np.float32([4.3, 1.75, 2, 420 / 90]).tolist()
    assert means(row_average(), [1, 2, 3], CASES, heads(-1)) == expected


def test_a_row_that_no_node_of_the_round_annotates_stays_as_it_was_sent() -> None:
    start = {"head.weight": np.full((4, 3, 1, 1), -7, np.float32), "head.bias": np.full(4, -7, np.float32)}
    assert means(row_average(), [1, 3], dict.fromkeys(NAMES, 1), start) == [3.5, 1, -7, 6]
    assert means(row_average(), [1], dict.fromkeys(NAMES, 1), start) == [1, 1, -7, -7]


def test_where_none_was_sent_it_is_the_mean_over_all() -> None:
    assert means(row_average(), [1, 3], dict.fromkeys(NAMES, 1), {}) == [3.5, 1, 3.5, 6]


def test_rounds_do_not_see_each_other() -> None:
    rows, weights = row_average(), dict.fromkeys(NAMES, 1)
    first = means(rows, [1, 2, 3], weights, heads(-1))
    means(rows, [1], weights, {})
    assert means(rows, [1, 2, 3], weights, heads(-1)) == first


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_heads_give_means_of_four_bytes(dtype: str) -> None:
    rows = row_average()
    rows.reset(heads(0.5, dtype))
    rows.add(1, heads(1.5, dtype), 1)
    (weight, bias) = rows.result().values()
    assert weight.dtype == bias.dtype == np.float32
    assert bias.tolist() == [1.5, 1.5, 0.5, 0.5]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_where_all_annotate_all_it_is_the_mean_of_whole_layers_to_the_last_bit(dtype: str) -> None:
    shapes = dict.fromkeys(NAMES, LAYERS)
    groups = LayerGroups(shapes, match_layers(shapes))
    rows = RowAverage(groups, {node: {head: [True] * 4 for head in HEADS} for node in NAMES}, NAMES)
    whole, rng = StreamingAverage(), np.random.default_rng(0)
    for node, cases in CASES.items():
        sent = {head: rng.standard_normal(LAYERS[head]).astype(dtype) for head in HEADS}
        rows.add(node, sent, cases)
        whole.add(sent, cases)
    expected, means = whole.result(), rows.result()
    assert all(means[head].dtype == expected[head].dtype for head in HEADS)
    assert all(np.array_equal(means[head], expected[head]) for head in HEADS)


def test_heads_that_stay_local_are_not_averaged() -> None:
    rows = row_average(keep_local=["head"])
    assert not rows.heads
    rows.add(1, {"encoder": np.ones(2, np.float32)}, 1)
    assert rows.result() == {}


def test_heads_of_unlike_networks_do_not_meet() -> None:
    """Riga's has other features; over all nodes only the bias matches."""
    layers = {**dict.fromkeys((1, 2), LAYERS), 3: {**LAYERS, "head.weight": [4, 5, 1, 1]}}
    assert row_average(layers).heads == {"head.bias"}


def test_a_head_for_other_classes_is_refused() -> None:
    layers = {**dict.fromkeys((1, 2), LAYERS), 3: LAYERS}
    groups = LayerGroups(layers, match_layers(layers))
    with pytest.raises(ConfigError, match=r"^node Riga: head head.bias of shape \(4,\) is for 3 classes$"):
        RowAverage(groups, {3: {"head.bias": [True, False, True]}}, NAMES)


def test_a_layer_that_is_a_head_at_some_nodes_only_is_refused() -> None:
    shapes = dict.fromkeys(NAMES, LAYERS)
    groups = LayerGroups(shapes, match_layers(shapes))
    annotated = {node: {"head.bias": rows} for node, rows in ANNOTATED.items() if node != 2}
    with pytest.raises(ConfigError, match=r"^node Porto: layer head.bias is no head that is trained"):
        RowAverage(groups, annotated, NAMES)
    with pytest.raises(ConfigError, match=r"^node Oslo: layer head.bias is no head that is trained"):
        AsymFedAvg().prepare(
            shapes,
            NAMES,
            buffers={node: ["head.bias"] for node in NAMES},
            annotated={node: {"head.bias": rows} for node, rows in ANNOTATED.items()},
        )
