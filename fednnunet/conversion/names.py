"""Names of cases and labels, as users and sources give them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fednnunet.errors import ConfigError, DataError

LARGEST_VALUE = 255
"""Label maps are written as 8-bit integers."""


def name_cases(originals: Iterable[str]) -> dict[str, str]:
    """A name of letters, digits, ``_`` and ``-`` for each name of the source, no two the same.

    Other characters become ``_``; where that makes two names equal, each gets a digest of the original, so names do not
    depend on the order of the source.
    """
    wanted = {name: as_case_name(name) for name in originals}
    counts = Counter(wanted.values())
    return {
        name: safe if safe == name or counts[safe] == 1 else f"{safe}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, safe in wanted.items()
    }


def as_case_name(text: str) -> str:
    """``text`` with ``_`` for characters that a case's name must not hold."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)


def read_labels(text: str) -> dict[int, str]:
    """Value in the label maps to name, without background.

    Args:
        text: ``tumour=1,node=2``, or a JSON file: name to value, or an object with that as its field ``labels``.

    Raises:
        ConfigError: it is neither; says what is wrong.
        DataError: the JSON file cannot be read, or holds something else.
    """
    if text.endswith(".json"):
        path = Path(text)
        content = read_json(path)
        return label_values(content.get("labels", content), str(path))
    pairs = [pair.split("=") for pair in text.split(",") if pair.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"labels: {text!r} must be names and values such as tumour=1,node=2, or a JSON file")
    try:
        return name_values(((name.strip(), value.strip()) for name, value in pairs), "labels")
    except ValueError as error:
        raise ConfigError(str(error)) from None


def label_values(labels: Any, where: str) -> dict[int, str]:
    """Value to name, without background, of a JSON object that maps name to value, or value to name.

    Raises:
        DataError: it is no such object; begins with ``where``.
    """
    if not isinstance(labels, dict) or not labels:
        raise DataError(f"{where}: labels must map names to values")
    value_first = all(str(key).strip().isdigit() for key in labels)
    pairs = ((other, key) if value_first else (key, other) for key, other in labels.items())
    try:
        return name_values(pairs, where)
    except ValueError as error:
        raise DataError(str(error)) from None


def number_labels(maps: Iterable[Mapping[int, str]]) -> dict[str, int]:
    """Label name to value as nnU-Net wants them: background 0, then 1, 2, … in the order of the sources' values.

    ``ignore`` comes last, where nnU-Net wants it.
    """
    first: dict[str, int] = {}
    for values in maps:
        for value, name in values.items():
            first[name] = min(value, first.get(name, value))
    ordered = sorted(first, key=lambda name: (name == "ignore", first[name], name))
    return {"background": 0} | {name: number for number, name in enumerate(ordered, start=1)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: names the file: it is missing, or no JSON object.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} must be a JSON object")
    return content


def name_values(pairs: Iterable[tuple[Any, Any]], where: str) -> dict[int, str]:
    """Value to name, without background, of pairs of name and value; two values may have one name.

    Raises:
        ValueError: a value is no whole number, one value has two names, or no label is left.
    """
    names: dict[int, str] = {}
    for name, value in pairs:
        if not isinstance(value, int | str) or isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
            raise ValueError(f"{where}: label {name} has value {value!r}; it must be a whole number from 0")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: value {value} has no name")
        if names.setdefault(int(value), name) != name:
            raise ValueError(f"{where}: value {value} has two names, {names[int(value)]} and {name}")
    names.pop(0, None)
    if "background" in names.values():
        raise ValueError(f"{where}: background must have the value 0")
    if not names:
        raise ValueError(f"{where}: there is no label but background")
    if len(set(names.values())) > LARGEST_VALUE:
        raise ValueError(f"{where}: there are {len(names)} labels; a label map holds {LARGEST_VALUE}")
    return names
