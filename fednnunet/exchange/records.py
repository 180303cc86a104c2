"""Named arrays in Flower's records, which travel between machines.

Records hold numpy's own file format, which Flower's strategies read. It is written and read here without a detour:
one copy to write, none to read, and nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

from fednnunet.errors import ProtocolError, one_line
from fednnunet.exchange.arrays import ALIGNMENT, DTYPES, MAX_ARRAYS, MAX_BYTES, is_possible, num_bytes

NAME = re.compile(r"[A-Za-z0-9_.@]{1,512}")
"""Name of a layer, or of a group of layers."""


def to_array_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays as a Flower record in numpy's format, each copied once."""
    record = ArrayRecord()
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        data = b"".join((_npy_header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data))
        record[name] = Array(array.dtype.name, tuple(array.shape), "numpy.ndarray", data)
    return record


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Version 1.0 of numpy's file format (numpy.lib.format), padded as numpy does."""
    description = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padding = -(10 + len(description) + 1) % ALIGNMENT
    text = (description + " " * padding + "\n").encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def from_array_record(record: ArrayRecord, where: str) -> dict[str, np.ndarray]:
    """Read-only views of a record's arrays, without a copy.

    Raises:
        ProtocolError: names ``where`` and the array whose data do not match its description.
    """
    if len(record) > MAX_ARRAYS or sum(len(array.data) for array in record.values()) > MAX_BYTES:
        raise ProtocolError(f"{where} sent more than {MAX_ARRAYS} arrays or {MAX_BYTES} bytes")
    arrays = {}
    for name, array in record.items():
        if not NAME.fullmatch(name):
            raise ProtocolError(f"{where} sent an array that it calls {one_line(name)!r}")
        if array.stype != "numpy.ndarray" or array.dtype not in DTYPES:
            kind = one_line(f"{array.stype} of {array.dtype}")
            raise ProtocolError(f"{where} sent array {name} as {kind}")
        dtype, shape = np.dtype(array.dtype), tuple(array.shape)
        if not is_possible(shape, dtype):
            raise ProtocolError(f"{where} sent array {name} of an impossible shape, {one_line(str(shape))}")
        header = _npy_header(dtype, shape)
        values = memoryview(array.data)[len(header) :]
        if array.data[: len(header)] != header or len(values) != num_bytes(shape, dtype):
            raise ProtocolError(f"{where} sent array {name}, whose data are not {array.dtype} {shape}")
        arrays[name] = np.frombuffer(values, dtype=dtype).reshape(shape)
    return arrays
