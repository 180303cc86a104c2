"""Named arrays in Flower's records, which travel between machines.

Records hold numpy's own file format, which Flower's strategies read. It is written and read here without a detour:
one copy to write, none to read, and nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fednnunet.errors import ProtocolError, one_line
from fednnunet.exchange.arrays import (
    DTYPES,
    MAX_ARRAYS,
    MAX_BYTES,
    NAME,
    SharedArrays,
    is_possible,
    npy_header,
    num_bytes,
)

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)


def arrays_in(content: RecordDict) -> ArrayRecord:
    """The record ``arrays`` of a message; empty where there is none."""
    return _record(content, "arrays", ArrayRecord)


def config_in(content: RecordDict, name: str = "config") -> ConfigRecord:
    """The record ``name`` of a message's configuration; empty where there is none."""
    return _record(content, name, ConfigRecord)


def metrics_in(content: RecordDict) -> MetricRecord:
    """The record ``metrics`` of a message; empty where there is none."""
    return _record(content, "metrics", MetricRecord)


def _record(content: RecordDict, name: str, kind: type[R]) -> R:
    """A record of a kind, read without the views that Flower has of each kind.

    These refer to themselves and to the content, whose arrays, as large as a model, would stay in memory until Python
    next looks for cycles.
    """
    found = content.get(name)
    return found if isinstance(found, kind) else kind()


def to_array_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays as a Flower record in numpy's format, each copied once."""
    record = ArrayRecord()
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        data = b"".join((npy_header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data))
        record[name] = Array(array.dtype.name, tuple(array.shape), "numpy.ndarray", data)
    return record


def as_array_record(shared: SharedArrays) -> ArrayRecord:
    """Arrays in shared memory as a Flower record in numpy's format, without a copy."""
    record, memory = ArrayRecord(), shared.buffer
    for name, (shape, dtype) in shared.spec.items():
        header, offset = npy_header(dtype, shape), shared.layout.arrays[name].offset
        start, end = offset - len(header), offset + num_bytes(shape, dtype)
        if start >= 0 and memory[start:offset] == header:
            record[name] = array_of(dtype.name, shape, "numpy.ndarray", memory[start:end])
        else:
            array = np.ndarray(shape, dtype, buffer=memory, offset=offset)
            record[name] = to_array_record({name: array})[name]
    return record


def array_of(dtype: str, shape: tuple[int, ...], stype: str, data: bytes | memoryview) -> Array:
    """A Flower array of bytes that may lie anywhere, without a copy; Flower's own constructor takes ``bytes`` alone."""
    array = Array(dtype, shape, stype, b"")
    array.data = data  # type: ignore[assignment]
    return array


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """A record of Flower arrays as they are; Flower's own constructor takes none that lie in shared memory."""
    record = ArrayRecord()
    record.update(arrays)
    return record


def from_array_record(record: ArrayRecord, where: str) -> dict[str, np.ndarray]:
    """Read-only views of a record's arrays, without a copy.

    Raises:
        ProtocolError: names ``where`` and the array whose data do not match its description.
    """
    if len(record) > MAX_ARRAYS or sum(len(array.data) for array in record.values()) > MAX_BYTES:
        raise ProtocolError(f"{where} sent more than {MAX_ARRAYS} arrays or {MAX_BYTES} bytes")
    arrays = {}
    for name, array in record.items():
        if not re.fullmatch(NAME, name):
            raise ProtocolError(f"{where} sent an array that it calls {one_line(name)!r}")
        if array.stype != "numpy.ndarray" or array.dtype not in DTYPES:
            kind = one_line(f"{array.stype} of {array.dtype}")
            raise ProtocolError(f"{where} sent array {name} as {kind}")
        dtype, shape = np.dtype(array.dtype), tuple(array.shape)
        if not is_possible(shape, dtype):
            raise ProtocolError(f"{where} sent array {name} of an impossible shape, {one_line(str(shape))}")
        header = npy_header(dtype, shape)
        values = memoryview(array.data)[len(header) :]
        if array.data[: len(header)] != header or len(values) != num_bytes(shape, dtype):
            raise ProtocolError(f"{where} sent array {name}, whose data are not {array.dtype} {shape}")
        arrays[name] = np.frombuffer(values, dtype=dtype).reshape(shape)
    return arrays
