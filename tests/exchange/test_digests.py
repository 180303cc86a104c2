"""Salted digests, against HMAC written out by hand."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from fednnunet.exchange.digests import make_salt, salted
from fednnunet.exchange.messages import FingerprintRequest

Bytes32 = st.binary(min_size=32, max_size=32)


@given(Bytes32, Bytes32)
def test_it_is_hmac_sha256(digest: bytes, salt: bytes) -> None:
    key = salt.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + digest).digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()
    assert salted(digest.hex(), salt.hex()) == outer


def test_salts_are_fresh_and_fit_the_message() -> None:
    salts = {make_salt() for _ in range(100)}
    assert len(salts) == 100
    for salt in salts:
        assert FingerprintRequest(salt=salt).salt == salt
