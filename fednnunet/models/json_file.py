"""JSON from outside."""

from __future__ import annotations

import json
from typing import Any

from fednnunet.errors import DataError, one_line

MOST_BYTES = 2**24
"""No JSON file of a model is larger. Plans of the largest published models are below 100 kB."""


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        DataError: too large, not JSON, no object, nested too deeply, or with NaN.
    """
    if len(content) > MOST_BYTES:
        raise DataError(f"{where} has {len(content)} bytes, more than the {MOST_BYTES} that it may have")
    try:
        found = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be read as JSON: {one_line(str(error))[:200]}") from None
    if not isinstance(found, dict):
        raise DataError(f"{where} must hold a JSON object")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
