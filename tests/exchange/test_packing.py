"""Arrays packed into one: unchanged, without copies, and once for messages that have them in common."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fednnunet.exchange.packing import ARRAYS, PACKED, Packer, pack, unpack
from fednnunet.exchange.records import array_of, from_array_record, record_of, to_array_record

LAYERS = {
    "weight": np.arange(6000, dtype=np.float32).reshape(60, 100),
    "odd": np.ones(3, dtype=np.float16),
    "after": np.arange(5, dtype=np.float64),
    "flags": np.array([True, False, True]),
    "last": np.arange(7, dtype=np.int64),
}


def content_of(arrays: ArrayRecord, body: str = "{}") -> RecordDict:
    return RecordDict({"config": ConfigRecord({"body": body}), ARRAYS: arrays})


@pytest.mark.unit
def test_arrays_are_unpacked_as_they_were_aligned_and_without_copies() -> None:
    packed = pack(content_of(to_array_record(LAYERS)))
    one = packed.array_records[ARRAYS][PACKED]
    packed.array_records[ARRAYS][PACKED] = Array(one.dtype, one.shape, one.stype, one.data)  # as it arrives
    content = unpack(packed, "the node")
    arrays = from_array_record(content.array_records[ARRAYS], "the node")
    assert list(arrays) == list(LAYERS)
    for name, array in arrays.items():
        assert array.dtype == LAYERS[name].dtype
        assert np.array_equal(array, LAYERS[name])
        assert array.flags.aligned
    whole = np.frombuffer(packed.array_records[ARRAYS][PACKED].data, np.uint8)
    assert np.shares_memory(whole, arrays["weight"])
    assert content.config_records["config"] == {"body": "{}"}


@pytest.mark.unit
def test_arrays_are_packed_where_they_are() -> None:
    memory = bytearray(b"before")
    one = pack(content_of(record_of({"a": array_of("uint8", (6,), "bytes", memoryview(memory))})))
    memory[:] = b"after!"
    assert one.array_records[ARRAYS][PACKED].data == b"after!"


@pytest.mark.unit
def test_unpacked_arrays_can_be_packed_again() -> None:
    first = pack(content_of(to_array_record(LAYERS)))
    again = pack(unpack(first, "the node"))
    assert again.object_id == first.object_id


@pytest.mark.unit
def test_messages_with_the_same_arrays_are_packed_once() -> None:
    arrays, packer = to_array_record(LAYERS), Packer()
    first = packer.pack(content_of(arrays, "1"))
    second = packer.pack(content_of(record_of(arrays), "2"))
    assert second.array_records[ARRAYS] is first.array_records[ARRAYS]
    assert second.config_records["config"] == {"body": "2"}
    assert second.object_id == pack(content_of(arrays, "2")).object_id


@pytest.mark.unit
def test_messages_with_other_arrays_are_packed_each() -> None:
    arrays = to_array_record(LAYERS)
    fewer = record_of({name: array for name, array in arrays.items() if name != "odd"})
    other_order = record_of({name: arrays[name] for name in reversed(list(arrays))})
    equal = to_array_record(LAYERS)
    packer = Packer()
    for record in (arrays, fewer, other_order, equal, arrays):
        assert packer.pack(content_of(record)).object_id == pack(content_of(record)).object_id
    without = RecordDict({"config": ConfigRecord({"body": "{}"})})
    assert packer.pack(without) is without
    assert packer.pack(content_of(ArrayRecord())).object_id == pack(content_of(ArrayRecord())).object_id
