"""Digests of images that two nodes can compare through a server that has neither image.

HMAC-SHA256 (RFC 2104) with a salt of the run: digests of two runs cannot be compared, and no table of known images can
be made in advance. Anyone who knows the salt and has an image can find out whether a node has it: see
docs/explanation/security.md.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

DIGESTS_FILE = "image_digests.json"
"""File in a node's folder: salted digest to names of its cases; it stays there, for a person to look up."""


def make_salt() -> str:
    """32 random bytes in hexadecimal."""
    return secrets.token_hex(32)


def salted(digest: str, salt: str) -> str:
    """The digest that leaves the node in place of ``digest``.

    Args:
        digest: SHA-256 of an image's content, in hexadecimal.
        salt: the run's, of :func:`make_salt`.
    """
    return hmac.new(bytes.fromhex(salt), bytes.fromhex(digest), hashlib.sha256).hexdigest()
