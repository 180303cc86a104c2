"""Named arrays across process borders."""

from __future__ import annotations

import os

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import (
    DTYPES,
    FLOATS,
    Layout,
    SharedArrays,
    check_finite,
)
from fednnunet.exchange.records import as_array_record, from_array_record, to_array_record


def any_bits(dtype: str) -> st.SearchStrategy[np.ndarray]:
    """Arrays of ``dtype``; hypothesis does not know bfloat16, so its are made of its bits."""
    known = "uint16" if dtype == "bfloat16" else dtype
    shapes = array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    return arrays(np.dtype(known), shapes).map(lambda array: array if known == dtype else array.view(dtype))


ANY_ARRAY = st.sampled_from(DTYPES).flatmap(any_bits)


@given(st.dictionaries(st.from_regex(r"[a-z_.]{1,20}", fullmatch=True), ANY_ARRAY, max_size=5))
def test_shared_memory_and_records_return_what_was_put_in(named: dict[str, np.ndarray]) -> None:
    shared = SharedArrays.allocate({name: (array.shape, array.dtype) for name, array in named.items()})
    for name, view in shared.views().items():
        view[...] = named[name]
    layout = Layout.parse(shared.layout.model_dump_json().encode(), "a test")
    received = SharedArrays.attach(shared.memory.lend(), layout, "a test")
    record = as_array_record(received)
    assert to_array_record(received.views()).keys() == record.keys()
    for name, array in from_array_record(record, "a test").items():
        assert array.dtype == named[name].dtype
        assert array.tobytes() == named[name].tobytes()
        # Flower's own reader, which its strategies use, agrees on the format (of bfloat16 on the bytes).
        assert record[name].numpy().tobytes() == named[name].tobytes()
        assert record[name].numpy().shape == named[name].shape
    assert len(record) == len(named)


def test_records_of_flowers_own_making_are_read() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(from_array_record(ArrayRecord({"a": Array(array)}), "x")["a"], array)


def test_received_shared_memory_can_not_be_written() -> None:
    shared = SharedArrays.allocate({"a": ((3,), np.dtype("float32"))})
    received = SharedArrays.attach(shared.memory.lend(), shared.layout, "a test")
    with pytest.raises(ValueError, match="read-only"):
        received.views()["a"][0] = 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"\x80\x04nonsense", "malformed"),
        (b'{"arrays": {"a": {"dtype": "object", "shape": [1], "offset": 0}}, "size": 64}', "type object"),
        (b'{"arrays": {"a": {"dtype": "float32", "shape": [17], "offset": 0}}, "size": 64}', "outside"),
        (b'{"arrays": {"a": {"dtype": "float32", "shape": [1], "offset": 4}}, "size": 64}', "outside"),
        (b'{"arrays": {"../a": {"dtype": "float32", "shape": [1], "offset": 0}}, "size": 64}', "malformed"),
        (b'{"arrays": {"a": {"dtype": "float32", "shape": [-1], "offset": 0}}, "size": 64}', "malformed"),
        (b'{"arrays": {}, "size": 99999999999999}', "malformed"),
    ],
)
def test_layouts_that_lie_are_refused(text: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=f"node B.*{problem}"):
        Layout.parse(text, "node B")


def test_memory_smaller_than_its_layout_is_refused() -> None:
    shared = SharedArrays.allocate({"a": ((1000,), np.dtype("float32"))})
    os.ftruncate(shared.memory.fd, 10)
    with pytest.raises(ProtocolError, match="less memory"):
        SharedArrays.attach(shared.memory.lend(), shared.layout, "node B")


def test_no_memory_for_no_arrays_is_refused() -> None:
    with pytest.raises(ProtocolError, match="less memory"):
        SharedArrays.attach(os.memfd_create("empty"), Layout(arrays={}, size=0), "node B")


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (2,), "pickle", b"\x80\x04K\x01."),
        Array("object", (1,), "numpy.ndarray", b"\x93NUMPY"),
        Array("float32", (2,), "numpy.ndarray", b""),
        Array("float32", (3,), "numpy.ndarray", Array(np.zeros(2, dtype=np.float32)).data),
        Array("float32", (2,), "numpy.ndarray", Array(np.zeros(2, dtype=np.float64)).data),
        Array("float32", (2,), "numpy.ndarray", Array(np.zeros(2, dtype=np.float32)).data + b"more"),
    ],
)
def test_records_that_are_not_what_they_say_are_refused(array: Array) -> None:
    with pytest.raises(ProtocolError, match="node B sent array w"):
        from_array_record(ArrayRecord({"w": array}), "node B")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_wherever_they_hide(value: float, dtype: str) -> None:
    array = np.zeros(200_000, dtype=dtype)
    check_finite({"w": array}, "node B")
    array[-1] = value
    with pytest.raises(ProtocolError, match="node B sent layer w"):
        check_finite({"w": array}, "node B")
