"""Codes of Flower's ``Error``, as the relay sends and the server reads them."""

from __future__ import annotations

ERROR_CODES = {"internal": 0, "data": 101, "config": 102, "protocol": 103, "unreachable": 104, "unavailable": 105}
"""What is the user's to fix, and what is not."""
