"""Many arrays packed into one, for grids where each array costs requests of its own.

Flower sends every array of a message as an object, in chunks of 5 MiB, each by an HTTP request at every hop: the 128
tensors of a U-Net take 300 requests, packed into one array and cut into larger chunks they take 20.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import DTYPES, MAX_ARRAYS, MAX_BYTES
from fednnunet.exchange.flower_internals import ArrayInPieces
from fednnunet.exchange.messages import Body, LayerName, Shape, parse_body
from fednnunet.exchange.records import array_of, arrays_in, config_in

ARRAYS = "arrays"
PACKED = "packed"
CHUNK_BYTES = 8 * 2**20
"""Of packed arrays: a request costs as much as some MiB in it, but lasts 3 s on a line of 20 Mbit/s."""
STYPE = "fednnunet.packed"
"""Type of the packed array: bytes that Flower passes on as they are."""


class PackedArray(Body):
    """One of the arrays: the fields of Flower's ``Array``, and its number of bytes."""

    name: LayerName
    dtype: str = Field(max_length=32)
    shape: Shape
    stype: str = Field(max_length=64)
    size: int = Field(ge=0, le=MAX_BYTES)


class Packing(Body):
    """The arrays in the packed bytes, in order."""

    arrays: Annotated[list[PackedArray], Field(max_length=MAX_ARRAYS)]


def pack(content: RecordDict) -> RecordDict:
    """The content with its arrays packed into one; content without arrays is returned as it is.

    Nothing is copied: no array may change before the message is sent.
    """
    if not isinstance(content.get(ARRAYS), ArrayRecord):
        return content
    arrays = arrays_in(content)
    packing = Packing(
        arrays=[
            PackedArray(name=name, dtype=a.dtype, shape=list(a.shape), stype=a.stype, size=len(a.data))
            for name, a in arrays.items()
        ]
    )
    packed = ArrayRecord()
    packed[PACKED] = ArrayInPieces(STYPE, [array.data for array in arrays.values()], CHUNK_BYTES)
    layout = ConfigRecord({"layout": packing.model_dump_json()})
    return _with_packed(content, packed, layout)


def _with_packed(content: RecordDict, arrays: ArrayRecord, layout: ConfigRecord) -> RecordDict:
    packed = RecordDict({name: record for name, record in content.items() if name != ARRAYS})
    packed[ARRAYS], packed[PACKED] = arrays, layout
    return packed


class Packer:
    """Packs messages one after another, the arrays that one has in common with the one before it only once.

    Flower then cuts them and computes their checksums once, too.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}
        self._packed: RecordDict | None = None

    def pack(self, content: RecordDict) -> RecordDict:
        """As :func:`pack`; no array may change before the last message that has it is sent."""
        arrays = dict(arrays_in(content))
        if self._packed is not None and _are_same(arrays, self._arrays):
            return _with_packed(content, arrays_in(self._packed), config_in(self._packed, PACKED))
        self._packed = None  # not both in memory
        packed = pack(content)
        if arrays:
            self._arrays, self._packed = arrays, packed
        return packed


def _are_same(ours: dict[str, Array], others: dict[str, Array]) -> bool:
    """Whether they are the same arrays in memory, by the same names in the same order."""
    return list(ours) == list(others) and all(
        one.data is other.data and (one.dtype, one.shape, one.stype) == (other.dtype, other.shape, other.stype)
        for one, other in zip(ours.values(), others.values(), strict=True)
    )


def _item_bytes(dtype: str) -> int:
    return np.dtype(dtype).itemsize if dtype in DTYPES else 1


def unpack(content: RecordDict, where: str) -> RecordDict:
    """The inverse of :func:`pack`, without a copy; content that is not packed is returned as it is.

    Raises:
        ProtocolError: the layout is malformed, or not that of the bytes; names ``where``.
    """
    if not isinstance(content.get(PACKED), ConfigRecord):
        return content
    layout, one = config_in(content, PACKED).get("layout"), arrays_in(content).get(PACKED)
    if not isinstance(layout, str) or one is None or one.stype != STYPE:
        raise ProtocolError(f"{where} sent packed arrays without what is in them")
    arrays = parse_body(Packing, layout, where).arrays
    if sum(array.size for array in arrays) != len(one.data) or len({array.name for array in arrays}) < len(arrays):
        raise ProtocolError(f"{where} sent {len(one.data)} bytes of packed arrays, which are not those it lists")
    record, start, data = ArrayRecord(), 0, memoryview(one.data)
    for array in arrays:
        part = data[start : start + array.size]
        values = part if start % _item_bytes(array.dtype) == 0 else bytes(part)  # copied if not as its type must lie
        record[array.name] = array_of(array.dtype, tuple(array.shape), array.stype, values)
        start += array.size
    content = RecordDict({name: held for name, held in content.items() if name not in (ARRAYS, PACKED)})
    content[ARRAYS] = record
    return content
