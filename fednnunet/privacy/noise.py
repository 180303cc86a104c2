"""Gaussian noise from a secret seed: the same request gets the same noise, else asking twice would average it away.

Uniform numbers from AES-256 in counter mode (:mod:`fednnunet.privacy.masks`), made normal by Box and Muller (1958).
"""

from __future__ import annotations

import numpy as np

from fednnunet.privacy.masks import CHUNK, Keystream

WORDS = 4
"""Integers that a pair of normal numbers is made of: two of 53 bits, as doubles hold."""
PAIRS = CHUNK // WORDS


def add_noise(values: np.ndarray, deviation: float, seed: bytes) -> None:
    """Add normal noise of mean 0 to floats, in place.

    Args:
        values: contiguous array of floats.
        deviation: standard deviation.
        seed: 32 secret bytes, used for this array only.

    Raises:
        ValueError: it is not contiguous.
    """
    if not values.flags.c_contiguous:  # its flat view would be a copy, and the noise lost
        raise ValueError("noise is added to contiguous arrays only")
    stream, flat = Keystream(seed), values.reshape(-1)
    for start in range(0, flat.size, 2 * PAIRS):
        block = flat[start : start + 2 * PAIRS]
        words = stream.next()[: WORDS * block.size]  # a few numbers do not take all of them
        block += (deviation * _normal(words))[: block.size].astype(flat.dtype)


def uniform(number: int, seed: bytes) -> np.ndarray:
    """Numbers in (0, 1), as doubles.

    Args:
        number: how many.
        seed: 32 secret bytes, used for these only.
    """
    stream, drawn = Keystream(seed), np.empty(number)
    for start in range(0, number, CHUNK // 2):
        block = drawn[start : start + CHUNK // 2]
        block[:] = _uniform(stream.next())[: block.size]
    return drawn


def _uniform(words: np.ndarray) -> np.ndarray:
    """A number in (0, 1) from every two integers."""
    return ((words.view("<u8") >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _normal(words: np.ndarray) -> np.ndarray:
    """Two normal numbers from every four integers."""
    numbers = _uniform(words)  # never 0: the logarithm is finite
    radius, angle = np.sqrt(-2 * np.log(numbers[0::2])), 2 * np.pi * numbers[1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
