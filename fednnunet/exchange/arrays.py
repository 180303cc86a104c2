"""Named arrays in shared memory, between the processes of one machine.

The memory is anonymous (its descriptor travels over the socket), so a process that is killed leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from pydantic import Field, ValidationError

from fednnunet.errors import ProtocolError, one_line
from fednnunet.exchange.messages import MAX_DIMENSIONS, MAX_LAYERS, MAX_LENGTH, Body, LayerName, Shape

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
"""float32 without its last 16 bits; numpy has no such type, and writes it to files as two bytes of no type."""
FLOATS = ("float32", "float16", BFLOAT16.name, "float64")
DTYPES = (*FLOATS, "int64", "int32", "uint8", "bool")
MAX_BYTES = 8 * 2**30
"""Most bytes of all arrays: twice nnU-Net's ResEnc XL, with room to spare."""
MAX_ARRAYS = MAX_LAYERS
ALIGNMENT = 64
BLOCK = 1 << 16
"""Number of elements that are checked at a time: they stay in the cache."""

Spec: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class ArrayLayout(Body):
    """Type, shape and place of one array in shared memory; ``offset`` in bytes."""

    dtype: str
    shape: Shape
    offset: int = Field(ge=0, le=MAX_BYTES)


class Layout(Body):
    """Places of all arrays in shared memory of ``size`` bytes."""

    arrays: dict[LayerName, ArrayLayout] = Field(max_length=MAX_ARRAYS)
    size: int = Field(ge=0, le=MAX_BYTES)

    @classmethod
    def parse(cls, text: bytes, where: str) -> Layout:
        """Parse what ``where`` sent.

        Raises:
            ProtocolError: malformed, unknown dtype, an array that reaches beyond ``size``, or more bytes in all.
        """
        try:
            layout = cls.model_validate_json(text)
        except ValidationError as error:
            raise ProtocolError(f"{where} sent a malformed layout: {error.errors()[0]['msg']}") from None
        total = 0
        for name, array in layout.arrays.items():
            if array.dtype not in DTYPES:
                raise ProtocolError(f"{where} sent array {name} of type {one_line(array.dtype)}")
            size = num_bytes(array.shape, array.dtype)
            if (
                array.offset % ALIGNMENT
                or array.offset + size > layout.size
                or not is_possible(array.shape, array.dtype)
            ):
                raise ProtocolError(f"{where} sent array {name} outside of its memory")
            total += size
        if total > layout.size:  # each may lie within, but copies of all of them would not
            raise ProtocolError(f"{where} sent arrays that overlap")
        return layout


def num_bytes(shape: list[int] | tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array of this shape."""
    size = np.dtype(dtype).itemsize
    for length in shape:
        size *= length
    return size


def is_possible(shape: list[int] | tuple[int, ...], dtype: Any) -> bool:
    """Whether an array of this shape may be made; a length of zero does not make the others harmless."""
    return (
        len(shape) <= MAX_DIMENSIONS
        and all(0 <= length <= MAX_LENGTH for length in shape)
        and num_bytes([length or 1 for length in shape], dtype) <= MAX_BYTES
    )


class SharedArrays:
    """Named arrays in anonymous shared memory; can be reused for a transfer of the same ``spec``."""

    def __init__(self, fd: int, layout: Layout, writeable: bool) -> None:
        self.fd = fd
        self.layout = layout
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writeable else 0)
        self._memory = mmap.mmap(fd, max(layout.size, 1), mmap.MAP_SHARED, access)

    @classmethod
    def allocate(cls, spec: Spec) -> SharedArrays:
        """Memory for arrays of these shapes and dtypes."""
        arrays, offset = {}, 0
        for name, (shape, dtype) in spec.items():
            arrays[name] = ArrayLayout(dtype=np.dtype(dtype).name, shape=list(shape), offset=offset)
            offset += -(-num_bytes(shape, dtype) // ALIGNMENT) * ALIGNMENT
        if offset > MAX_BYTES:
            raise ProtocolError(f"{offset} bytes of arrays are more than the {MAX_BYTES} that can be sent")
        fd = _anonymous_file()
        os.ftruncate(fd, max(offset, 1))
        return cls(fd, Layout(arrays=arrays, size=offset), writeable=True)

    @classmethod
    def attach(cls, fd: int, layout: Layout, where: str) -> SharedArrays:
        """Read what another process wrote; owns ``fd`` from here on.

        Raises:
            ProtocolError: the memory is smaller than the layout says.
        """
        if os.fstat(fd).st_size < max(layout.size, 1):  # an empty file cannot be mapped at all
            os.close(fd)
            raise ProtocolError(f"{where} sent less memory than its layout needs")
        return cls(fd, layout, writeable=False)

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shapes and dtypes."""
        return {name: (tuple(a.shape), np.dtype(a.dtype)) for name, a in self.layout.arrays.items()}

    def views(self) -> dict[str, np.ndarray]:
        """The arrays, without a copy; valid until :meth:`close`."""
        return {
            name: np.ndarray(tuple(array.shape), array.dtype, buffer=self._memory, offset=array.offset)
            for name, array in self.layout.arrays.items()
        }

    def sha256(self) -> str:
        """Digest of the memory in its layout: the arrays in order, each padded with zeros to a multiple of 64 bytes."""
        with memoryview(self._memory) as memory:
            return hashlib.sha256(memory[: self.layout.size]).hexdigest()

    def close(self) -> None:
        """Free the memory once no view is in use."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        try:
            self._memory.close()
        except BufferError:
            # A view lives on; the mapping goes with it.
            self._memory = None  # type: ignore[assignment]


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fednnunet", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def check_finite(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Check that all values are finite.

    Raises:
        ProtocolError: names ``where`` and the first array that is not finite.
    """
    for name, array in arrays.items():
        if array.dtype.name not in FLOATS:
            continue
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            if not np.isfinite(flat[start : start + BLOCK]).all():
                raise ProtocolError(f"{where} sent layer {name} with values that are not finite")
