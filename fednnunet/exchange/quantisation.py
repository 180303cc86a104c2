"""Differences of layers in a few bits a value: quantised, then entropy-coded.

A *step* leads from the state of a layer that both ends have to the next one. It is sent as whole numbers times a scale,
from -M to M with ``M = 2**(bits - 1) - 1``::

    scale = max|d| / M,    q = rint(d / scale),    receiver: reference + q * scale

The scale is one for a layer with 8 bits. With 4 there is one for each slice along the layer's first axis (of a
convolution: its output channels): on updates of nnU-Net that halves the error, for a bit a value more.

What quantising leaves over, ``d - q * scale``, is the sender's to send with the next step: error feedback (Seide et al.
2014; Karimireddy et al. 2019), here in both directions as in DoubleSqueeze (Tang et al. 2019). Most whole numbers are
small, so Zstandard codes them in fewer bits than they have.

All arithmetic is in float32, one numpy operation after another, so that both ends get the same bits on any machine.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import zstandard

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import BLOCK
from fednnunet.exchange.messages import ExchangeDtype

BITS: dict[str, int] = {"int8": 8, "int4": 4}
"""Precision to bits of a whole number, before entropy coding."""
VERSION = 1
HEADER = struct.Struct("<BB")
"""Version, bits; scales follow, then a frame of Zstandard."""
SCALE = np.dtype("<f4")
LEVEL = 1
"""Of Zstandard. Whole numbers do not repeat in patterns, so higher levels search for them in vain."""
MAX_WINDOW = 1 << 23
"""Bytes that a decompressor may keep in memory; at this level ours need a sixteenth of it."""


def is_quantised(dtype: ExchangeDtype) -> bool:
    """Whether layers travel as steps in this precision."""
    return dtype in BITS


def encode_step(step: np.ndarray, dtype: ExchangeDtype, state: np.ndarray | None = None) -> np.ndarray | None:
    """A step as bytes.

    Args:
        step: what to send; float32, contiguous. What quantising leaves over is written back into it.
        dtype: ``int8`` or ``int4``.
        state: where given, what is sent is added to it, as the receiver does; float32, contiguous, of the same shape.

    Returns:
        One-dimensional uint8: header, scales, and one Zstandard frame. None where a value, or what the receiver would
        make of it, is not finite; nothing is changed then.
    """
    bits = BITS[dtype]
    most = np.float32(_most(bits))
    rows = step.reshape(_scales(step.shape, bits), -1)
    states = None if state is None else state.reshape(rows.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = _largest(rows) / most
        if not np.isfinite(scales * most).all():
            return None
    divisors = np.where(scales > 0, scales, np.float32(1))
    numbers = np.zeros(step.size + (step.size % 2 if bits == 4 else 0), dtype=np.int8)
    in_rows = numbers[: step.size].reshape(rows.shape)
    for block in _blocks(rows.shape):
        rounded = rows[block] / divisors[block[0]]
        np.clip(np.rint(rounded, out=rounded), -most, most, out=rounded)  # beyond only where a scale is subnormal
        in_rows[block] = rounded
        sent = np.multiply(rounded, scales[block[0]], out=rounded)
        rows[block] -= sent
        if states is not None:
            states[block] += sent
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(_pack(numbers, bits).data)
    return np.frombuffer(HEADER.pack(VERSION, bits) + scales.astype(SCALE).tobytes() + frame, dtype=np.uint8)


def decode_step(wire: np.ndarray, reference: np.ndarray, dtype: ExchangeDtype, where: str) -> np.ndarray:
    """The layer that a step leads to.

    Nothing is decompressed but a frame that announces, and holds, as many bytes as the layer needs.

    Args:
        wire: what :func:`encode_step` returned, as it was received.
        reference: what the step starts from; float32.
        dtype: precision that was asked for.
        where: sender and layer, for the error.

    Returns:
        ``reference`` plus the step, in the shape of ``reference``; float32.

    Raises:
        ProtocolError: not such a step; says what is wrong.
    """
    bits = BITS[dtype]
    start = reference.reshape(_scales(reference.shape, bits), -1)
    header = HEADER.size + len(start) * SCALE.itemsize
    if wire.dtype != np.uint8 or wire.ndim != 1 or wire.size < header:
        raise ProtocolError(f"{where} as {wire.dtype} {wire.shape} instead of the bytes of an {dtype} step")
    data = wire.tobytes()
    version, sent_bits = HEADER.unpack_from(data)
    if (version, sent_bits) != (VERSION, bits):
        raise ProtocolError(
            f"{where} as a step of {sent_bits} bits in format {version} instead of {bits} bits in format {VERSION}"
        )
    scales = np.frombuffer(data, SCALE, len(start), HEADER.size).astype(np.float32)[:, None]
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ProtocolError(f"{where} as a step with a scale that is not finite, or negative")
    numbers = _unpack(_decompress(data[header:], -(-start.size * bits // 8), where), bits)
    most = _most(bits)
    if numbers.size and (numbers.min() < -most or numbers.max() > most or numbers[start.size :].any()):
        raise ProtocolError(f"{where} as a step with numbers that are not of {bits} bits")
    numbers = numbers[: start.size].reshape(start.shape)
    values = np.empty(start.shape, dtype=np.float32)
    with np.errstate(over="ignore"):
        for block in _blocks(start.shape):
            step = np.multiply(numbers[block], scales[block[0]], dtype=np.float32)
            np.add(start[block], step, out=values[block])
            if not np.isfinite(values[block]).all():
                raise ProtocolError(f"{where} with values that are not finite")
    return values.reshape(reference.shape)


def most_bytes(shape: Sequence[int], dtype: ExchangeDtype) -> int:
    """Most bytes that a step of a layer takes, of whatever values."""
    content = -(-math.prod(shape) * BITS[dtype] // 8)
    return HEADER.size + _scales(tuple(shape), BITS[dtype]) * SCALE.itemsize + content + content // 256 + 64


class StepFeedback:
    """Sends named layers as steps, and carries what quantising leaves over into the next.

    Args:
        dtype: ``int8`` or ``int4``.
        exact: layers that travel as they are, such as running statistics.

    Attributes:
        residuals: name to what is still to be sent (float32, of the layer's shape).
    """

    def __init__(self, dtype: ExchangeDtype, exact: Collection[str] = ()) -> None:
        self.dtype = dtype
        self.exact = frozenset(exact)
        self.residuals: dict[str, np.ndarray] = {}

    def is_step(self, name: str, array: np.ndarray, reference: np.ndarray | None) -> bool:
        """Whether a layer travels as a step: it is trained, and both ends have something that a step can start from."""
        return name not in self.exact and reference is not None and array.dtype == reference.dtype == np.float32

    def encode(
        self, name: str, array: np.ndarray, reference: np.ndarray, where: str, state: np.ndarray | None = None
    ) -> np.ndarray:
        """The step from ``reference`` to ``array`` plus what was left over before; ``state`` as in :func:`encode_step`.

        Raises:
            ProtocolError: values that are not finite, or so large that their difference is not; names ``where`` and
                the layer; nothing is changed.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            step = np.subtract(array, reference, order="C")
            if name in self.residuals:
                step += self.residuals[name]
        wire = encode_step(step, self.dtype, state)
        if wire is None:
            raise ProtocolError(f"{where} sent layer {name} with values that are not finite, or too far apart")
        self.residuals[name] = step
        return wire


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's values, by which two ends agree on what a step starts from."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _most(bits: int) -> int:
    """The largest whole number."""
    return int(2 ** (bits - 1) - 1)


def _scales(shape: tuple[int, ...], bits: int) -> int:
    """Number of scales of a layer; one where it has no values."""
    return shape[0] if bits < 8 and len(shape) > 1 and all(shape) else 1


def _largest(rows: np.ndarray) -> np.ndarray:
    """Largest absolute value of each row, as a column; NaN where one is."""
    if not rows.size:
        return np.zeros((len(rows), 1), dtype=np.float32)
    largest: np.ndarray = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True))
    return largest


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Parts of a table that stay in the cache: whole rows, or parts of one."""
    rows, columns = shape
    height = max(1, BLOCK // max(1, columns))
    for top in range(0, rows, height):
        for left in range(0, columns, BLOCK):
            yield slice(top, top + height), slice(left, left + BLOCK)


def _pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of 4 bits two in a byte, from the two halves: Zstandard is faster so, and codes them in fewer bits."""
    if bits == 8:
        return numbers.view(np.uint8)
    low, high = (numbers + np.int8(_most(bits))).view(np.uint8).reshape(2, -1)
    return low | high << 4


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of :func:`_pack`; int8."""
    if bits == 8:
        return packed.view(np.int8)
    return np.concatenate((packed & 15, packed >> 4)).view(np.int8) - np.int8(_most(bits))


def _decompress(frame: bytes, size: int, where: str) -> np.ndarray:
    """The content of one frame of ``size`` bytes.

    Raises:
        ProtocolError: it announces another size, is damaged, or something follows it.
    """
    try:
        announced = zstandard.get_frame_parameters(frame).content_size
        if announced != size:
            raise ProtocolError(f"{where} as a step that announces {announced} bytes; the layer needs {size}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        content = decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"{where} as a step that cannot be decompressed ({error})") from None
    if len(content) != size:
        raise ProtocolError(f"{where} as a step of {len(content)} bytes; the layer needs {size}")
    return np.frombuffer(content, dtype=np.uint8)
