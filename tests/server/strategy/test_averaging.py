"""Asymmetric averaging, against the original's values, numpy and properties."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednnunet.errors import ProtocolError
from fednnunet.exchange.rounding import ErrorFeedback
from fednnunet.server.strategy.averaging import StreamingAverage, average_layers, common_layers
from fednnunet.server.strategy.layer_matching import match_layers

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "aggregation.json").read_text())
STATES = [{name: np.array(values) for name, values in state.items()} for state in GOLDEN["states"]]


def test_common_layers_are_those_of_the_original() -> None:
    groups = common_layers(STATES)
    assert groups == {name: {0: name, 1: name, 2: name} for name in GOLDEN["common"]}


def test_average_is_that_of_the_original() -> None:
    averaged = average_layers(STATES)
    for node in averaged:
        assert node.keys() == GOLDEN["mean"].keys()
        for name, expected in GOLDEN["mean"].items():
            np.testing.assert_allclose(node[name], expected, rtol=1e-12)


def test_groups_average_among_those_who_have_the_layer() -> None:
    averaged = average_layers(STATES, share="groups")
    assert [sorted(node) for node in averaged] == [["a", "b", "c"], ["a", "c", "d"], ["a", "b", "d"]]
    np.testing.assert_allclose(averaged[0]["b"], (STATES[0]["b"] + STATES[2]["b"]) / 2)
    np.testing.assert_allclose(averaged[1]["d"], (STATES[1]["d"] + STATES[2]["d"]) / 2)


def test_weights_are_those_of_numpy() -> None:
    averaged = average_layers(STATES, weights=[1, 2, 5])
    expected = np.average([state["a"] for state in STATES], axis=0, weights=[1, 2, 5])
    np.testing.assert_allclose(averaged[0]["a"], expected, rtol=1e-12)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.integers(1, 200_000))
def test_mean_of_equal_states_is_that_state(nodes: int, seed: int, size: int) -> None:
    state = {"w": np.random.default_rng(seed).standard_normal(size).astype(np.float32)}
    for averaged in average_layers([state] * nodes):
        assert averaged["w"].dtype == np.float32
        assert np.array_equal(averaged["w"], state["w"])


def test_result_does_not_depend_on_the_order_of_arrival() -> None:
    rng = np.random.default_rng(0)
    # Magnitudes so different that a sum in another order has other last bits.
    states = {node: {"w": (rng.standard_normal(5000) * 10.0**node).astype(np.float64)} for node in range(4)}
    groups = match_layers({node: {"w": (5000,)} for node in states})
    results = []
    for order in itertools.permutations(states):
        average = StreamingAverage({node: {"w": (5000,)} for node in states}, groups)
        for node in order:
            average.add(node, states[node], weight=1.0 + node)
        results.append(average.result()["w"].tobytes())
    assert len(set(results)) == 1


def test_integer_buffers_are_averaged_and_rounded() -> None:
    states = [{"num_batches": np.array(value)} for value in (10, 11, 13)]
    averaged = average_layers(states)[0]["num_batches"]
    assert averaged.dtype == states[0]["num_batches"].dtype
    assert averaged == 11


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_two_bytes_a_value_are_averaged_as_exactly_as_float32_can(dtype: str) -> None:
    rng = np.random.default_rng(0)
    states = [{"w": rng.standard_normal(100_000).astype(dtype)} for _ in range(50)]
    averaged = average_layers(states, weights=list(range(1, 51)))[0]["w"]
    assert averaged.dtype == np.float32
    exact = np.average([state["w"].astype(float) for state in states], axis=0, weights=range(1, 51))
    np.testing.assert_allclose(averaged, exact, atol=1e-6)


def test_sums_and_what_rounding_leaves_over_take_two_models_and_a_block() -> None:
    size = 4_000_000
    groups = {node: {"w": "w"} for node in range(4)}
    state = {"w": np.random.default_rng(0).standard_normal(size, dtype=np.float32).astype(np.float16)}
    feedback = ErrorFeedback("float16")
    tracemalloc.start()
    average = StreamingAverage({node: {"w": (size,)} for node in groups}, groups)
    for node in groups:
        average.add(node, state)
    encoded = feedback.encoded(average.result(), "the server")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(encoded["w"], state["w"]), "the mean of equal states"
    assert peak < 2.55 * 4 * size, "sums, what is left over, and half a model that is sent"


@pytest.fixture
def average() -> StreamingAverage[str]:
    shapes = {node: {"w": (2,), "b": (1,)} for node in "AB"}
    return StreamingAverage(shapes, match_layers(shapes))


def state(w: object = (1.0, 2.0), b: object = (3.0,), **more: object) -> dict[str, np.ndarray]:
    return {name: np.array(value, dtype=np.float32) for name, value in {"w": w, "b": b, **more}.items()}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (state(w=(1.0, np.nan)), "layer w with values that are not finite"),
        (state(w=(1.0, np.inf)), "layer w with values that are not finite"),
        (state(w=(1.0, 2.0, 3.0)), r"layer w with shape \(3,\)"),
        (state(extra=(1.0,)), "layer extra"),
        ({"w": np.zeros(2, dtype=np.float32)}, "did not send layer b"),
        ({name: array.astype(np.float64) for name, array in state().items()}, "as float64"),
    ],
)
def test_bad_states_are_refused_by_node_and_layer_and_leave_no_trace(
    average: StreamingAverage[str], bad: dict[str, np.ndarray], problem: str
) -> None:
    average.add("A", state())
    with pytest.raises(ProtocolError, match=f"node B .*{problem}"):
        average.add("B", bad)
    average.skip("B")
    for name, array in average.result().items():
        assert np.array_equal(array, state()[name])


def test_a_node_counts_once(average: StreamingAverage[str]) -> None:
    average.add("A", state())
    with pytest.raises(ProtocolError, match="node A has answered this round already"):
        average.add("A", state())
    with pytest.raises(ProtocolError, match="node C is not part"):
        average.add("C", state())


def test_reset_starts_a_round_without_the_last(average: StreamingAverage[str]) -> None:
    average.add("A", state(w=(100.0, 100.0)))
    average.add("B", state(w=(100.0, 100.0)))
    average.result()
    average.reset()
    average.add("A", state())
    average.add("B", state())
    assert np.array_equal(average.result()["w"], state()["w"])
