"""Error feedback: what is sent and what is left over is what was to be sent."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.rounding import ErrorFeedback, check_dtypes, decode

TWO_BYTES: list[ExchangeDtype] = ["float16", "bfloat16"]
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding once."""


def sent(feedback: ErrorFeedback, array: np.ndarray) -> np.ndarray:
    return feedback.encoded({"w": array}, "a test")["w"]


@pytest.mark.parametrize("dtype", TWO_BYTES)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 3 * BLOCK), rounds=st.integers(1, 12))
def test_sent_and_left_over_add_up(dtype: ExchangeDtype, seed: int, size: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    feedback = ErrorFeedback(dtype)
    wanted, received = np.zeros(size), np.zeros(size)
    for _ in range(rounds):
        array = rng.standard_normal(size, dtype=np.float32)
        encoded = sent(feedback, array)
        assert encoded.dtype == np.dtype(dtype)
        wanted += array
        received += encoded.astype(np.float64)
    left = feedback.residuals["w"]
    np.testing.assert_allclose(received + left, wanted, atol=rounds * 2.0**-21)
    assert np.abs(left).max() <= 8 * EPSILON[dtype], "no more is left over than rounding once takes away"


@pytest.mark.parametrize("dtype", TWO_BYTES)
def test_the_first_round_is_the_types_own_rounding(dtype: ExchangeDtype) -> None:
    array = np.random.default_rng(0).standard_normal((5, BLOCK)).astype(np.float32)
    assert np.array_equal(sent(ErrorFeedback(dtype), array), array.astype(dtype))


@pytest.mark.parametrize("dtype", TWO_BYTES)
def test_steps_too_small_for_the_type_arrive_after_enough_rounds(dtype: ExchangeDtype) -> None:
    """A receiver that starts each round from what it was sent, as nodes do."""
    step, rounds = np.float32(EPSILON[dtype] / 20), 200
    feedback, ours, plain = ErrorFeedback(dtype), np.ones(3, np.float32), np.ones(3, np.float32)
    for _ in range(rounds):
        ours = sent(feedback, ours + step).astype(np.float32)
        plain = (plain + step).astype(dtype).astype(np.float32)
    assert np.array_equal(plain, np.ones(3)), "without feedback nothing ever arrives"
    np.testing.assert_allclose(ours, 1 + rounds * step, rtol=2 * EPSILON[dtype])
    assert (ours > 1 + (rounds - 21) * step).all()


@pytest.mark.parametrize("dtype", TWO_BYTES)
def test_what_is_too_large_for_the_type_is_sent_in_parts(dtype: ExchangeDtype) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    feedback = ErrorFeedback(dtype)
    first = sent(feedback, np.array([largest * 1.003, -largest * 1.003], dtype=np.float32))
    assert np.array_equal(first.astype(np.float64), [largest, -largest])
    second = sent(feedback, np.zeros(2, dtype=np.float32)).astype(np.float64)
    np.testing.assert_allclose(second, [largest * 0.003, -largest * 0.003], rtol=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(value: float) -> None:
    feedback = ErrorFeedback("bfloat16")
    good = {"w": np.full(3, 0.1, dtype=np.float32), "b": np.full(2, 0.1, dtype=np.float32)}
    feedback.encoded(good, "node B")
    before = {name: array.copy() for name, array in feedback.residuals.items()}
    with pytest.raises(ProtocolError, match="node B sent layer b with values that are not finite"):
        feedback.encoded(good | {"b": np.array([0.1, value], dtype=np.float32)}, "node B")
    assert all(np.array_equal(feedback.residuals[name], before[name]) for name in good)


def test_integers_travel_as_they_are_and_double_precision_is_rounded() -> None:
    feedback = ErrorFeedback("float16")
    arrays = {"count": np.array(2**40 + 1), "w": np.array([1 / 3]), "scalar": np.array(0.1, dtype=np.float32)}
    encoded = feedback.encoded(arrays, "a test")
    assert encoded["count"] == 2**40 + 1
    assert encoded["count"].dtype == arrays["count"].dtype
    assert (encoded["w"].dtype, encoded["scalar"].dtype) == (np.float16, np.float16)
    assert feedback.residuals.keys() == {"w", "scalar"}
    np.testing.assert_allclose(encoded["w"].astype(float) + feedback.residuals["w"], 1 / 3, rtol=1e-7)


def test_decoding_is_exact_and_leaves_the_rest_alone() -> None:
    arrays = {"w": np.array([0.1]).astype("bfloat16"), "h": np.float16([0.1]), "f": np.array([0.1]), "n": np.array([3])}
    decoded = decode(arrays)
    assert {name: array.dtype.name for name, array in decoded.items()} == {
        "w": "float32",
        "h": "float32",
        "f": "float64",
        "n": "int64",
    }
    assert all(np.array_equal(decoded[name].astype(array.dtype), array) for name, array in arrays.items())


@pytest.mark.parametrize(
    ("asked", "came"),
    [("float16", "float32"), ("float16", "bfloat16"), ("bfloat16", "float64"), ("float32", "float16")],
)
def test_another_dtype_than_asked_for_is_refused_by_node_and_layer(asked: ExchangeDtype, came: str) -> None:
    arrays = {"count": np.zeros(2, dtype=np.int64), "w": np.zeros(2).astype(came)}
    with pytest.raises(ProtocolError, match=f"node B sent layer w as {came} instead of {asked}"):
        check_dtypes(arrays, asked, "node B")
    check_dtypes(arrays | {"w": np.zeros(2).astype(asked)}, asked, "node B")


def test_double_precision_may_travel_where_nothing_is_rounded() -> None:
    check_dtypes({"w": np.zeros(2)}, "float32", "node B")
