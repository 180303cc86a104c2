"""Masks that cancel in a sum: keystreams of AES-256 in counter mode, from seeds of HKDF.

Both by ``cryptography`` (NIST SP 800-38A; RFC 5869). A seed is used for one stream only, so the counter starts at 0.
"""

from __future__ import annotations

import json

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEED_BYTES = 32
CHUNK = 1 << 16
"""Number of integers of a keystream that are made at a time: they stay in the cache."""


def derive_seed(secret: bytes, *purpose: str | int) -> bytes:
    """32 bytes that depend on every word of ``purpose``; other purposes give unrelated ones.

    Args:
        secret: 32 bytes that only the owners of the seed know.
        purpose: what the seed is for, such as a run, a fold, a round and a digest.
    """
    return HKDF(SHA256(), SEED_BYTES, salt=None, info=json.dumps(purpose).encode()).derive(secret)


class Keystream:
    """The keystream of a seed, as unsigned integers of 32 bits.

    Args:
        seed: 32 bytes, used for this stream only.
    """

    def __init__(self, seed: bytes) -> None:
        self._cipher = Cipher(AES256(seed), CTR(bytes(16))).encryptor()
        self._zeros, self._chunk = bytes(4 * CHUNK), bytearray(4 * CHUNK + 15)

    def next(self) -> np.ndarray:
        """The next :data:`CHUNK` integers; they are valid until the next call."""
        self._cipher.update_into(self._zeros, self._chunk)
        return np.frombuffer(self._chunk, dtype="<u4", count=CHUNK)


def add_mask(values: np.ndarray, seed: bytes, sign: int = 1) -> None:
    """Add the keystream of ``seed`` to integers modulo 2**32, in place, or subtract it.

    Args:
        values: contiguous int32 array.
        seed: 32 bytes.
        sign: 1 or -1.
    """
    stream, combine = Keystream(seed), np.add if sign > 0 else np.subtract
    flat = values.reshape(-1).view(np.uint32)
    for start in range(0, flat.size, CHUNK):
        block = flat[start : start + CHUNK]
        combine(block, stream.next()[: block.size], out=block)
