"""Shamir's secret sharing (1979): any ``threshold`` shares give the secret back, fewer say nothing of it.

Over the integers modulo the prime 2**256 + 297, the smallest above all 32-byte secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fednnunet.errors import ProtocolError
from fednnunet.privacy.masks import SEED_BYTES, derive_seed

PRIME = 2**256 + 297
SHARE_BYTES = 33


def split(secret: bytes, holders: Sequence[int], threshold: int, randomness: bytes) -> dict[int, bytes]:
    """One share per holder.

    Args:
        secret: 32 bytes.
        holders: places of the holders, from 1, each once.
        threshold: number of shares that give the secret back.
        randomness: 32 secret bytes, used for this secret only: split again, the shares are the same.

    Raises:
        ValueError: fewer holders than the threshold, or a place that is not positive.
    """
    if not 1 <= threshold <= len(set(holders)) or min(holders) < 1 or len(secret) != SEED_BYTES:
        raise ValueError(f"{threshold} of {len(set(holders))} shares of {len(secret)} bytes cannot be made")
    # Two blocks for each coefficient: its remainder is then as good as uniform.
    coefficients = [int.from_bytes(secret, "big")] + [
        int.from_bytes(derive_seed(randomness, degree, 0) + derive_seed(randomness, degree, 1), "big") % PRIME
        for degree in range(1, threshold)
    ]
    return {place: _evaluate(coefficients, place).to_bytes(SHARE_BYTES, "big") for place in holders}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret.

    Args:
        shares: place of the holder to its share; any ``threshold`` of them are used.
        threshold: as in :func:`split`.

    Raises:
        ProtocolError: too few shares, a malformed one, or shares of no 32-byte secret.
    """
    if len(shares) < threshold:
        raise ProtocolError(f"{len(shares)} of the {threshold} shares that it takes are there")
    points = {place: int.from_bytes(share, "big") for place, share in sorted(shares.items())[:threshold]}
    if any(len(share) != SHARE_BYTES for share in shares.values()) or max(points.values()) >= PRIME:
        raise ProtocolError("a share is malformed")
    secret = 0
    for place, value in points.items():  # Lagrange's interpolation at 0
        above = below = 1
        for other in points:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >= 2 ** (8 * SEED_BYTES):
        raise ProtocolError("the shares are not of one secret")
    return secret.to_bytes(SEED_BYTES, "big")


def _evaluate(coefficients: Sequence[int], at: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % PRIME
    return value
