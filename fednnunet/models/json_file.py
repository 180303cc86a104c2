"""JSON objects in files of models: from outside, and of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fednnunet.errors import DataError, one_line

MOST_BYTES = 2**24
"""No JSON file of a model is larger. Plans of the largest published models are below 100 kB."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file that nnU-Net or a run has written on this machine; NaN may be in it.

    Raises:
        DataError: it cannot be read, or as of :func:`parse_json`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read as JSON: {error.strerror}") from None
    return parse_json(content, str(path), allow_nan=True)


def parse_json(content: bytes, where: str, allow_nan: bool = False) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        DataError: too large, not JSON, no object, nested too deeply, or with NaN.
    """
    if len(content) > MOST_BYTES:
        raise DataError(f"{where} has {len(content)} bytes, more than the {MOST_BYTES} that it may have")
    try:
        found = json.loads(content.decode("utf-8-sig"), parse_constant=None if allow_nan else _refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be read as JSON: {one_line(str(error))[:200]}") from None
    if not isinstance(found, dict):
        raise DataError(f"{where} must hold a JSON object")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
