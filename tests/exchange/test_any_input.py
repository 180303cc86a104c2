"""Whatever comes from elsewhere is a value or a ProtocolError: nothing else is raised, and little memory is taken."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import DTYPES, Layout, SharedArrays
from fednnunet.exchange.messages import REPLIES, REQUESTS, Body, Failure, parse_body
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.fingerprint.schema import DatasetFingerprint

MODELS: list[type[Body]] = [*dict.fromkeys([*REQUESTS.values(), *REPLIES.values()]), Failure]
NUMBERS = st.integers() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**40, 2**63])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
NAMES = st.text(max_size=20) | st.sampled_from([field for model in MODELS for field in model.model_fields])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=8), max_leaves=20
)
SURROGATES = st.text(st.characters(codec=None), max_size=30)
BODIES: dict[type[Body], st.SearchStrategy[Any]] = {  # each built once, not for every example
    model: st.binary(max_size=200)
    | SURROGATES
    | (JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(model.model_fields, JSON))).map(json.dumps)
    for model in MODELS
}
MEGABYTE = 2**20
T = TypeVar("T")


def value_or_problem(read: Callable[[], T]) -> tuple[T | None, str]:
    """What ``read`` returns, or what it says of what was sent: a line that names the sender."""
    try:
        return read(), ""
    except ProtocolError as error:
        problem = str(error)
    assert problem.startswith("node B sent ")
    assert problem.isprintable()
    return None, problem


@pytest.mark.parametrize("model", MODELS)
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_bodies(model: type[Body], data: st.DataObject) -> None:
    text = data.draw(BODIES[model])
    body, problem = value_or_problem(lambda: parse_body(model, text, "node B"))
    assert isinstance(body, model) or len(problem) < 1200


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"a":' * 10**5, "9" * 10**5, '{"x": 1e999999}', "\ud800", '{"fold": ' + "9" * 5000 + "}", "", "\0"],
    ids=["lists", "objects", "digits", "exponent", "surrogate", "fold", "nothing", "zero"],
)
@pytest.mark.parametrize("model", MODELS)
def test_bodies_made_to_hurt(model: type[Body], text: str) -> None:
    with pytest.raises(ProtocolError, match=r"^node B sent a malformed"):
        parse_body(model, text, "node B")


@given(JSON)
@settings(deadline=None)
def test_fingerprints(content: Any) -> None:
    told, problem = value_or_problem(lambda: DatasetFingerprint.parse(content, "node B"))
    assert told is not None or "malformed fingerprint" in problem


LENGTHS = st.integers(-3, 6) | st.sampled_from([0, 2**16, 2**31, 2**31 + 1, 2**40, 2**63, 2**70])
SHAPES = st.lists(LENGTHS, max_size=10)
LAYOUTS = st.fixed_dictionaries(
    {
        "arrays": st.dictionaries(
            st.sampled_from(["a", "encoder.0", "../x", ""]),
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from([*DTYPES, "object", "S1", "float128", "\n"]),
                    "shape": SHAPES,
                    "offset": LENGTHS | st.just(64),
                }
            ),
        ),
        "size": LENGTHS | st.sampled_from([64, 4096, 8 * 2**30]),
    }
)


@given(st.binary(max_size=200) | (JSON | LAYOUTS).map(json.dumps).map(str.encode))
@settings(max_examples=500, deadline=None)
def test_layouts_and_views_of_what_they_say(text: bytes) -> None:
    layout, _ = value_or_problem(lambda: Layout.parse(text, "node B"))
    if layout is None:
        return
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, max(layout.size, 1))
    received = SharedArrays.attach(fd, layout, "node B")
    for name, view in received.views().items():
        assert view.shape == tuple(layout.arrays[name].shape)
        assert view.nbytes <= layout.size
        del view


ARRAYS = st.builds(
    Array,
    st.sampled_from([*DTYPES, "object", "O", "V8", "", "complex64", "\x1b[31m"]) | st.text(max_size=5),
    SHAPES.map(tuple),
    st.sampled_from(["numpy.ndarray", "numpy.ndarray", "pickle", ""]),
    st.binary(max_size=300) | st.sampled_from([b"\x93NUMPY\x01\x00v\x00", b"\x93NUMPY\x03\x00\xff\xff\xff\xff"]),
)
GOOD = to_array_record({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})["a"]


@st.composite
def nearly_good(draw: st.DrawFn) -> Array:
    """A good array of which something else is said, or with bytes that are not its own."""
    data = bytearray(GOOD.data)
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[place] = draw(st.integers(0, 255))
    shape = draw(st.just((2, 3)) | SHAPES.map(tuple))
    return Array(draw(st.sampled_from(["float32", "int32", "float64"])), shape, "numpy.ndarray", bytes(data))


@given(st.dictionaries(st.text(max_size=10) | st.sampled_from(["a", "b.c"]), ARRAYS | nearly_good(), max_size=4))
@settings(max_examples=500, deadline=None)
def test_records(arrays: dict[str, Array]) -> None:
    record = ArrayRecord(arrays)
    tracemalloc.start()
    read, _ = value_or_problem(lambda: from_array_record(record, "node B"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEGABYTE
    for name, array in (read or {}).items():
        assert array.shape == arrays[name].shape
        assert array.nbytes <= len(arrays[name].data)
