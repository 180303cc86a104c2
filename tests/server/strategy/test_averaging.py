"""The streaming average, against the original's values, numpy and properties."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednnunet.exchange.rounding import ErrorFeedback
from fednnunet.server.strategy.averaging import StreamingAverage
from fednnunet.server.strategy.layer_matching import match_layers

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "aggregation.json").read_text())
STATES = [{name: np.array(values) for name, values in state.items()} for state in GOLDEN["states"]]
State = Mapping[str, np.ndarray]


def average(
    states: Sequence[State], weights: Sequence[float] | None = None, **matching: str
) -> tuple[dict[int, dict[str, str]], dict[str, np.ndarray]]:
    """Groups of the layers that match, and their means."""
    groups = match_layers({n: {k: a.shape for k, a in state.items()} for n, state in enumerate(states)}, **matching)  # type: ignore[arg-type]
    streaming = StreamingAverage()
    for node, state in enumerate(states):
        streaming.add({group: state[k] for k, group in groups[node].items()}, weights[node] if weights else 1.0)
    return groups, streaming.result()


def test_average_is_that_of_the_original() -> None:
    groups, means = average(STATES)
    assert groups == {node: {name: name for name in GOLDEN["common"]} for node in range(3)}
    assert means.keys() == GOLDEN["mean"].keys()
    for name, expected in GOLDEN["mean"].items():
        np.testing.assert_allclose(means[name], expected, rtol=1e-12)


def test_groups_average_over_those_that_have_the_layer() -> None:
    groups, means = average(STATES, average_over="groups")
    assert [sorted(groups[node]) for node in groups] == [["a", "b", "c"], ["a", "c", "d"], ["a", "b", "d"]]
    np.testing.assert_allclose(means[groups[0]["b"]], (STATES[0]["b"] + STATES[2]["b"]) / 2)
    np.testing.assert_allclose(means[groups[1]["d"]], (STATES[1]["d"] + STATES[2]["d"]) / 2)


def test_weights_are_those_of_numpy() -> None:
    _, means = average(STATES, weights=[1, 2, 5])
    expected = np.average([state["a"] for state in STATES], axis=0, weights=[1, 2, 5])
    np.testing.assert_allclose(means["a"], expected, rtol=1e-12)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.integers(1, 200_000))
def test_mean_of_equal_states_is_that_state(nodes: int, seed: int, size: int) -> None:
    state = {"w": np.random.default_rng(seed).standard_normal(size).astype(np.float32)}
    _, means = average([state] * nodes)
    assert means["w"].dtype == np.float32
    assert np.array_equal(means["w"], state["w"])


def test_integer_buffers_are_averaged_and_rounded() -> None:
    states = [{"num_batches": np.array(value)} for value in (10, 11, 13)]
    mean = average(states)[1]["num_batches"]
    assert mean.dtype == states[0]["num_batches"].dtype
    assert mean == 11


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_two_bytes_per_value_are_averaged_as_exactly_as_float32_can(dtype: str) -> None:
    rng = np.random.default_rng(0)
    states = [{"w": rng.standard_normal(100_000).astype(dtype)} for _ in range(50)]
    mean = average(states, weights=list(range(1, 51)))[1]["w"]
    assert mean.dtype == np.float32
    exact = np.average([state["w"].astype(float) for state in states], axis=0, weights=range(1, 51))
    np.testing.assert_allclose(mean, exact, atol=1e-6)


def test_sums_and_what_rounding_leaves_over_take_two_models_and_a_block() -> None:
    size = 4_000_000
    state = {"w": np.random.default_rng(0).standard_normal(size, dtype=np.float32).astype(np.float16)}
    feedback = ErrorFeedback("float16")
    tracemalloc.start()
    streaming = StreamingAverage()
    for _ in range(4):
        streaming.add(state)
    encoded = feedback.encoded(streaming.result(), "the server")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(encoded["w"], state["w"]), "the mean of equal states"
    assert peak < 2.55 * 4 * size, "sums, what is left over, and half a model that is sent"


def test_reset_starts_a_round_without_the_last() -> None:
    streaming = StreamingAverage()
    for states in ([(100.0, 100.0), (100.0, 100.0)], [(1.0, 2.0), (3.0, 6.0)]):
        streaming.reset()
        for values in states:
            streaming.add({"w": np.array(values, dtype=np.float32)})
        assert np.array_equal(streaming.result()["w"], np.mean(states, axis=0))
