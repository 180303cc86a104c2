"""Secret sharing: any threshold of shares gives the secret, one fewer does not."""

from __future__ import annotations

import itertools

import pytest

from fednnunet.errors import ProtocolError
from fednnunet.privacy.shares import combine, split

SECRET, RANDOMNESS = bytes(range(32)), b"r" * 32


def test_any_threshold_of_shares_gives_the_secret() -> None:
    shares = split(SECRET, [1, 2, 3, 5, 8], 3, RANDOMNESS)
    for holders in itertools.combinations(shares, 3):
        assert combine({holder: shares[holder] for holder in holders}, 3) == SECRET
    assert combine(shares, 3) == SECRET
    assert split(SECRET, [1, 2, 3, 5, 8], 3, RANDOMNESS) == shares


def test_fewer_shares_say_nothing() -> None:
    shares = split(SECRET, [1, 2, 3], 3, RANDOMNESS)
    with pytest.raises(ProtocolError, match="2 of the 3 shares"):
        combine({1: shares[1], 2: shares[2]}, 3)
    for other in (bytes(32), b"\xff" * 32):  # two shares fit every secret: there is a third that gives it
        forged = {1: shares[1], 2: shares[2], 3: _third_share_for(other, shares)}
        assert combine(forged, 3) == other


def _third_share_for(secret: bytes, shares: dict[int, bytes]) -> bytes:
    from fednnunet.privacy.shares import PRIME, SHARE_BYTES

    f0, f1, f2 = (int.from_bytes(value, "big") for value in (secret, shares[1], shares[2]))
    return ((f0 - 3 * f1 + 3 * f2) % PRIME).to_bytes(SHARE_BYTES, "big")  # third differences of a parabola are 0


@pytest.mark.parametrize("share", [b"", b"\xff" * 33, bytes(32)])
def test_a_malformed_share_is_refused(share: bytes) -> None:
    shares = split(SECRET, [1, 2, 3], 2, RANDOMNESS)
    with pytest.raises(ProtocolError, match="a share is malformed"):
        combine({**shares, 1: share}, 2)


def test_thresholds_that_cannot_be_met_are_refused() -> None:
    for holders, threshold in (([1, 2], 3), ([1, 1], 2), ([0, 1], 2)):
        with pytest.raises(ValueError, match="cannot be made"):
            split(SECRET, holders, threshold, RANDOMNESS)
