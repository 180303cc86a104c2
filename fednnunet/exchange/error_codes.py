"""Codes of Flower's ``Error``: the relay sends them, the server reads them."""

from __future__ import annotations

ERROR_CODES = {
    "internal": 0,
    "data": 101,
    "config": 102,
    "protocol": 103,
    "unreachable": 104,
    "unavailable": 105,
    "reference": 106,
}
"""Kind of failure to code; ``data`` and ``config`` are the user's to fix, ``reference`` asks for whole layers."""
