"""JSON objects in files of models: from outside, and of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fednnunet.errors import DataError, one_line

MOST_BYTES = 2**24
"""No JSON file of a model is larger. Plans of the largest published models are below 100 kB."""


def read_json(path: Path, node: str = "", kind: type = dict) -> Any:
    """A JSON object, or list, in a file that nnU-Net or a run has written on this machine; NaN may be in it.

    Args:
        path: the file.
        node: whose it is, for errors; empty outside a run.
        kind: ``dict`` or ``list``.

    Raises:
        DataError: it cannot be read, or as of :func:`parse_json`.
    """
    where = f"node {node}: {path}" if node else str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}") from None
    return parse_json(content, where, allow_nan=True, kind=kind)


def parse_json(content: bytes, where: str, allow_nan: bool = False, kind: type = dict) -> Any:
    """A JSON object, or list, from outside.

    Raises:
        DataError: too large, not JSON, of another kind, nested too deeply, or with NaN.
    """
    if len(content) > MOST_BYTES:
        raise DataError(f"{where} has more than the {MOST_BYTES} bytes that it may have")
    try:
        found = json.loads(content.decode("utf-8-sig"), parse_constant=None if allow_nan else _refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {one_line(str(error))[:200]}") from None
    if not isinstance(found, kind):
        raise DataError(f"{where} must hold {'a JSON object' if kind is dict else 'a list'}")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
