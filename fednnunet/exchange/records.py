"""Named arrays in Flower's records, between machines.

Records hold numpy's own file format, which Flower's strategies read. It is written and read here without a detour:
one copy to write, none to read, and nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import ALIGNMENT, DTYPES, MAX_ARRAYS, MAX_BYTES, num_bytes


def to_array_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays as a Flower record in numpy's format, each copied once."""
    record = ArrayRecord()
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        data = b"".join((_npy_header(array), array.reshape(-1).view(np.uint8).data))
        record[name] = Array(array.dtype.name, tuple(array.shape), "numpy.ndarray", data)
    return record


def _npy_header(array: np.ndarray) -> bytes:
    """Version 1.0 of numpy's file format (numpy.lib.format), padded as numpy does."""
    description = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {tuple(array.shape)!r}, }}"
    padding = -(10 + len(description) + 1) % ALIGNMENT
    text = (description + " " * padding + "\n").encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def from_array_record(record: ArrayRecord, where: str) -> dict[str, np.ndarray]:
    """Read-only views of a record's arrays, without a copy.

    Raises:
        ProtocolError: names ``where`` and the array that is not what it says.
    """
    if len(record) > MAX_ARRAYS or sum(len(array.data) for array in record.values()) > MAX_BYTES:
        raise ProtocolError(f"{where} sent more than {MAX_ARRAYS} arrays or {MAX_BYTES} bytes")
    arrays = {}
    for name, array in record.items():
        if array.stype != "numpy.ndarray" or array.dtype not in DTYPES:
            raise ProtocolError(f"{where} sent array {name} as {array.stype} of {array.dtype}")
        expected = np.empty(0, dtype=array.dtype)
        header = _npy_header(np.broadcast_to(expected.sum(dtype=array.dtype), array.shape))
        values = memoryview(array.data)[len(header) :]
        if array.data[: len(header)] != header or len(values) != num_bytes(array.shape, array.dtype):
            raise ProtocolError(f"{where} sent array {name}, whose data are not {array.dtype} {array.shape}")
        arrays[name] = np.frombuffer(values, dtype=array.dtype).reshape(array.shape)
    return arrays
