"""Steps of layers in a few bits: what is sent and what is left over is what was to be sent; nothing else is decoded."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.quantisation import decode_step, digest, encode_step, most_bytes

STEPS: list[ExchangeDtype] = ["int8", "int4"]
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
FINITE = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))


def wire_of(bits: int, scales: list[float], content: bytes, version: int = 1, **options: Any) -> np.ndarray:
    """A step, made by hand."""
    frame = zstandard.ZstdCompressor(**options).compress(content)
    return np.frombuffer(bytes([version, bits]) + struct.pack(f"<{len(scales)}f", *scales) + frame, dtype=np.uint8)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


def test_a_layer_in_eight_bits_by_hand() -> None:
    """The largest of 2.54 is 127 times the scale of 0.02; 0.031 is rounded to 2 of it, -0.029 to -1."""
    step = np.float32([2.54, 0.031, -0.029, -1.0])
    wire = encode_step(step, "int8")
    assert wire is not None
    assert wire[:2].tolist() == [1, 8]
    np.testing.assert_allclose(np.frombuffer(wire.tobytes()[2:6], "<f4"), 0.02, rtol=1e-6)
    numbers = np.frombuffer(zstandard.ZstdDecompressor().decompress(wire.tobytes()[6:]), np.int8)
    assert numbers.tolist() == [127, 2, -1, -50]
    np.testing.assert_allclose(step, [0, -0.009, -0.009, 0], atol=1e-6)
    np.testing.assert_allclose(
        decode_step(wire, np.float32([1, 1, 1, 1]), "int8", ""), [3.54, 1.04, 0.98, 0], atol=1e-6
    )


def test_a_layer_in_four_bits_has_a_scale_for_each_channel_and_two_values_in_a_byte() -> None:
    """Scales of 1 and 0.1; the first half of all values is in the lower halves of the bytes, 7 more than it is."""
    step = np.float32([[7.0, -3.2, 0.4], [0.7, 0.14, -0.26]])
    wire = encode_step(step, "int4")
    assert wire is not None
    np.testing.assert_allclose(np.frombuffer(wire.tobytes()[2:10], "<f4"), [1, 0.1], rtol=1e-6)
    packed = zstandard.ZstdDecompressor().decompress(wire.tobytes()[10:])
    assert list(packed) == [14 + 16 * 14, 4 + 16 * 8, 7 + 16 * 4]
    np.testing.assert_allclose(step, [[0, -0.2, 0.4], [0, 0.04, 0.04]], atol=1e-6)
    np.testing.assert_allclose(decode_step(wire, zeros(2, 3), "int4", ""), [[7, -3, 0], [0.7, 0.1, -0.3]], atol=1e-6)


@pytest.mark.parametrize("dtype", STEPS)
@given(step=FINITE, seed=st.integers(0, 2**32 - 1))
@example(step=np.float32([3e38, 1]), seed=0)
@example(step=np.float32([3e-45, 1e-45]), seed=0)
@example(step=np.float32(8.1e-44), seed=0)
@example(step=np.float32(2.5), seed=0)
@example(step=np.float32([[np.nan, 1]]), seed=0)
def test_both_ends_get_the_same_bits_and_sent_and_left_over_add_up(
    dtype: ExchangeDtype, step: np.ndarray, seed: int
) -> None:
    reference = np.random.default_rng(seed).standard_normal(np.shape(step)).astype(np.float32)
    step = np.array(step, dtype=np.float32, order="C")
    before, left, state = step.copy(), step.copy(), reference.copy()
    with np.errstate(over="ignore"):
        wire = encode_step(left, dtype, state)
    if wire is None:
        assert not np.isfinite(before).all() or np.abs(before).max() > 3e38
        assert np.array_equal(left, before, equal_nan=True)
        assert np.array_equal(state, reference)
        return
    if not np.isfinite(state).all():
        with pytest.raises(ProtocolError, match="not finite"):
            decode_step(wire, reference, dtype, "it came")
        return
    assert decode_step(wire, reference, dtype, "").tobytes() == state.tobytes()
    sent = decode_step(wire, np.zeros_like(reference), dtype, "").astype(np.float64)
    largest = float(np.abs(before).max(initial=0))
    np.testing.assert_allclose(sent + left, before, atol=largest * 2.0**-22)
    assert wire.size <= most_bytes(before.shape, dtype)
    steps = 127 if dtype == "int8" else 7
    assert (
        np.abs(left).max(initial=0) <= largest / steps / 2 * 1.001 + steps * SMALLEST * 0.501
    )  # the step is rounded, too


@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("shape", [(3, BLOCK + 5), (BLOCK // 2 + 1, 3), (2 * BLOCK + 1,), (5, 7, 3, 3)])
def test_layers_larger_than_a_block_of_any_shape(dtype: ExchangeDtype, shape: tuple[int, ...]) -> None:
    """Against the formula on the whole array."""
    step = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    most = 127 if dtype == "int8" else 7
    axis = tuple(range(1, step.ndim)) if dtype == "int4" and step.ndim > 1 else None
    scale = np.abs(step).max(axis=axis, keepdims=True) / np.float32(most)
    expected = np.rint(step / scale) * scale
    wire = encode_step(step.copy(), dtype)
    assert wire is not None
    assert np.array_equal(decode_step(wire, zeros(*shape), dtype, ""), expected)


@pytest.mark.parametrize("dtype", STEPS)
def test_what_is_left_over_arrives_with_the_next_steps(dtype: ExchangeDtype) -> None:
    """Changes far smaller than half a scale, beside one that sets the scale: without feedback none would arrive."""
    change = np.float32([1.0, 1e-3, -2e-4])
    left, state = zeros(3), zeros(3)
    for _ in range(200):
        left += change
        assert encode_step(left, dtype, state) is not None
    np.testing.assert_allclose(state + left, 200 * change, rtol=1e-3)
    assert np.abs(left).max() < (2 / 127 if dtype == "int8" else 2 / 7) / 2 + 0.01


def test_values_cost_hardly_more_than_their_entropy() -> None:
    """A normal distribution: 6.7 bits a value at 8, and 3.0 at 4 (entropy of what rounding leaves)."""
    for dtype, most in (("int8", 6.95), ("int4", 3.2)):
        step = np.random.default_rng(0).standard_normal((256, 2304)).astype(np.float32)
        wire = encode_step(step, dtype)  # type: ignore[arg-type]
        assert wire is not None
        assert 8 * wire.size / step.size < most


def test_a_layer_that_stands_still_costs_nothing() -> None:
    wire = encode_step(zeros(1000), "int8")
    assert wire is not None
    assert wire.size < 50
    assert not decode_step(wire, zeros(1000), "int8", "").any()


GOOD = bytes(8)
LIES = {
    "no bytes": (zeros(8), "as float32"),
    "no header": (np.zeros(3, np.uint8), "instead of the bytes of an int8 step"),
    "two dimensions": (wire_of(8, [1], GOOD).reshape(1, -1), "instead of the bytes"),
    "other bits": (wire_of(4, [1], GOOD), "4 bits in format 1 instead of 8 bits in format 1"),
    "other format": (wire_of(8, [1], GOOD, version=9), "8 bits in format 9"),
    "a scale that is no number": (wire_of(8, [np.nan], GOOD), "scale that is not finite"),
    "an endless scale": (wire_of(8, [np.inf], GOOD), "scale that is not finite"),
    "a negative scale": (wire_of(8, [-1], GOOD), "negative"),
    "more bytes": (wire_of(8, [1], bytes(2**20)), "announces 1048576 bytes; the layer needs 8"),
    "fewer bytes": (wire_of(8, [1], bytes(7)), "announces 7 bytes"),
    "no announcement": (wire_of(8, [1], GOOD, write_content_size=False), "the layer needs 8"),
    "no frame": (np.frombuffer(bytes([1, 8]) + struct.pack("<f", 1) + b"not a frame", np.uint8), "decompressed"),
    "a cut frame": (wire_of(8, [1], GOOD)[:-2], "decompressed"),
    "a second frame": (np.concatenate([wire_of(8, [1], GOOD), wire_of(8, [1], GOOD)[6:]]), "decompressed"),
    "a number out of range": (wire_of(8, [1], bytes([128]) + bytes(7)), "not of 8 bits"),
    "values too large": (wire_of(8, [3e38], bytes([127] * 8)), "not finite"),
}


@pytest.mark.parametrize(("wire", "problem"), LIES.values(), ids=LIES)
def test_a_step_that_lies_is_refused_in_one_line(wire: np.ndarray, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem) as error:
        decode_step(wire, zeros(8), "int8", "node Riga sent layer head")
    assert str(error.value).startswith("node Riga sent layer head ")
    assert "\n" not in str(error.value)


def test_a_sixteenth_number_and_a_filled_gap_are_refused_in_four_bits() -> None:
    for content in (bytes([15, 7]), bytes([7, 7 + 16 * 15]), bytes([7, 7 + 16 * 8])):  # three values, and a gap
        with pytest.raises(ProtocolError, match="not of 4 bits"):
            decode_step(wire_of(4, [1], content), zeros(3), "int4", "it came")


def test_what_a_frame_says_of_its_size_is_checked_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = wire_of(8, [1], bytes(2**20))
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    with pytest.raises(ProtocolError, match="announces"):
        decode_step(wire, zeros(8), "int8", "it came")


@given(noise=st.binary(max_size=60), dtype=st.sampled_from(STEPS))
def test_any_bytes_are_decoded_or_refused(noise: bytes, dtype: ExchangeDtype) -> None:
    for wire in (noise, bytes([1, 8 if dtype == "int8" else 4]) + struct.pack("<f", 1) + noise):
        with contextlib.suppress(ProtocolError):
            assert decode_step(np.frombuffer(wire, np.uint8), zeros(5), dtype, "it came").shape == (5,)


@pytest.mark.parametrize("dtype", STEPS)
def test_no_values_take_more_bytes_than_is_said(dtype: ExchangeDtype) -> None:
    """Evenly spread ones cannot be coded in fewer bits than they have."""
    step = np.random.default_rng(0).uniform(-1, 1, (50, 40)).astype(np.float32)
    wire = encode_step(step, dtype)
    assert wire is not None
    assert most_bytes(step.shape, dtype) * 0.85 < wire.size <= most_bytes(step.shape, dtype)


def test_digests_tell_values_apart_and_not_memory() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest(array) == digest(np.asfortranarray(array)) == digest(array.copy())
    assert digest(array) != digest(array + np.float32(1e-6))
    assert len(digest(zeros(0))) == 64
