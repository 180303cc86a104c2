"""Named arrays in shared memory, between the processes of one machine.

The memory is anonymous (its descriptor travels over the socket), so a process that is killed leaves nothing behind.
Before each array stands its header in numpy's file format: a Flower record can show the memory as it is.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import ml_dtypes
import numpy as np
from pydantic import Field, ValidationError

from fednnunet.errors import ProtocolError, one_line
from fednnunet.exchange.messages import MAX_DIMENSIONS, MAX_LAYERS, MAX_LENGTH, Body, Shape
from fednnunet.exchange.shared_memory import Borrowed, SharedMemory, Window

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

NAME = r"[A-Za-z0-9_.@]{1,512}"
"""Name of a layer, or of a group of layers."""
ArrayName = Annotated[str, Field(pattern=f"^{NAME}$")]

Spec: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class ArrayLayout(Body):
    """Type, shape and place of one array in shared memory; ``offset`` in bytes."""

    dtype: str
    shape: Shape
    offset: int = Field(ge=0, le=MAX_BYTES)


class Layout(Body):
    """Places of all arrays in shared memory of ``size`` bytes."""

    arrays: dict[ArrayName, ArrayLayout] = Field(max_length=MAX_ARRAYS)
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
    """Named arrays in memory that processes share, each behind its header in numpy's file format.

    Args:
        memory: shared by processes.
        layout: places of the arrays in it.
        window: keeps the memory in use, where it is another process's.
    """

    def __init__(self, memory: SharedMemory, layout: Layout, window: Window | None = None) -> None:
        self.memory, self.layout = memory, layout
        self._window = window

    @classmethod
    def allocate(cls, spec: Spec) -> SharedArrays:
        """Memory for arrays of these shapes and dtypes."""
        arrays, headers, end = {}, {}, 0
        for name, (shape, dtype) in spec.items():
            header = npy_header(np.dtype(dtype), tuple(shape))
            headers[end], offset = header, end + len(header)
            arrays[name] = ArrayLayout(dtype=np.dtype(dtype).name, shape=list(shape), offset=offset)
            end = offset + _padded(num_bytes(shape, dtype))
        if end > MAX_BYTES:
            raise ProtocolError(f"{end} bytes of arrays are more than the {MAX_BYTES} that can be sent")
        memory = SharedMemory.allocate(max(end, 1))
        with memory.window().data as written:
            for start, header in headers.items():
                written[start : start + len(header)] = header
        return cls(memory, Layout(arrays=arrays, size=end))

    @classmethod
    def attach(
        cls, fd: int, layout: Layout, where: str, borrowed: Borrowed | None = None, lender: str | None = None
    ) -> SharedArrays:
        """Read what another process wrote; owns ``fd`` from here on.

        Args:
            fd: descriptor of the memory.
            layout: places of the arrays in it.
            where: who sent both.
            borrowed: keeps the memory mapped.
            lender: whose last memory is kept, see :meth:`~fednnunet.exchange.shared_memory.Borrowed.window`.

        Raises:
            ProtocolError: the memory is smaller than the layout says.
        """
        window = (borrowed or Borrowed(1)).window(fd, layout.size, where, lender)
        return cls(window.memory, layout, window)

    @classmethod
    def around(cls, arrays: Mapping[str, np.ndarray]) -> SharedArrays | None:
        """Arrays that lie in one shared memory, as what they are; None where they do not."""
        windows = [_window_of(array) for array in arrays.values()]
        first = windows[0] if windows else None
        if first is None or any(window is None or window.memory is not first.memory for window in windows):
            return None
        start, layouts = _address(first), {}
        for name, array in arrays.items():
            offset = _address(array) - start
            if offset % ALIGNMENT or not array.flags.c_contiguous:
                return None
            layouts[name] = ArrayLayout(dtype=array.dtype.name, shape=list(array.shape), offset=offset)
        return cls(first.memory, Layout(arrays=layouts, size=first.memory.size), first)

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shapes and dtypes."""
        return {name: (tuple(a.shape), np.dtype(a.dtype)) for name, a in self.layout.arrays.items()}

    @property
    def buffer(self) -> memoryview:
        """All of the memory; it is in use as long as this, or anything made from it."""
        return (self.memory.window() if self._window is None else self._window).data

    def views(self) -> dict[str, np.ndarray]:
        """The arrays, without a copy; the memory is in use as long as any of them."""
        memory = self.buffer
        return {
            name: np.ndarray(tuple(array.shape), array.dtype, buffer=memory, offset=array.offset)
            for name, array in self.layout.arrays.items()
        }

    def sha256(self) -> str:
        """Digest of the arrays in order, each padded with zeros to a multiple of 64 bytes."""
        digest, memory = hashlib.sha256(), self.buffer
        for array in self.layout.arrays.values():
            size = num_bytes(array.shape, array.dtype)
            digest.update(memory[array.offset : array.offset + size])
            digest.update(bytes(_padded(size) - size))
        return digest.hexdigest()

    def is_free_for(self, spec: Spec) -> bool:
        """Whether arrays of this ``spec`` can be written here: it is that of these, which nobody reads any more."""
        return self.spec == spec and not self.memory.is_in_use


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Version 1.0 of numpy's file format (numpy.lib.format), padded as numpy does."""
    description = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padding = -(10 + len(description) + 1) % ALIGNMENT
    text = (description + " " * padding + "\n").encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _window_of(array: np.ndarray) -> Window | None:
    """The window that an array was made from; None if there is none."""
    base: object = array
    while isinstance(base, np.ndarray | memoryview) and not isinstance(base, Window):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, Window) else None


@functools.cache  # numpy makes a name anew each time, slowly
def is_float(dtype: np.dtype) -> bool:
    """Whether it is one of :data:`FLOATS`."""
    return dtype.name in FLOATS


def check_finite(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Check that all values are finite.

    Raises:
        ProtocolError: names ``where`` and the first array that is not finite.
    """
    for name, array in arrays.items():
        if not is_float(array.dtype):
            continue
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            if not np.isfinite(flat[start : start + BLOCK]).all():
                raise ProtocolError(f"{where} sent layer {name} with values that are not finite")
