"""Names of channels and labels, and what they are called in DICOM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fednnunet.conversion.names import LARGEST_VALUE, read_json
from fednnunet.dicom.patterns import Patterns, pairs_of
from fednnunet.errors import ConfigError


def parse_patterns(text: str, option: str) -> Patterns:
    """Patterns from ``NAME=PATTERN|PATTERN,NAME``, or a JSON file: name to a pattern or a list of them.

    Args:
        text: what was given; a name alone is its own pattern.
        option: name of the option, for messages.

    Raises:
        ConfigError: no name, a name twice, or something else than names and patterns.
        DataError: the JSON file cannot be read.
    """
    pairs: Iterable[tuple[str, Any]]
    pairs = read_json(Path(text)).items() if text.endswith(".json") else pairs_of(text)
    by_name: dict[str, tuple[str, ...]] = {}
    for name, given in pairs:
        listed = given.split("|") if isinstance(given, str) else given
        if not isinstance(listed, list) or not all(isinstance(one, str) and one.strip() for one in listed):
            raise ConfigError(f"{option}: {name or given!r} must have patterns, such as liver=Liver*|hepar")
        if not name or not listed or name.casefold() == "background" or name in by_name:
            raise ConfigError(f"{option}: {name!r} must be a name that is given once, and not background")
        by_name[name] = tuple(one.strip().casefold() for one in listed)
    if not 0 < len(by_name) <= LARGEST_VALUE:
        raise ConfigError(f"{option}: give 1 to {LARGEST_VALUE} names, such as liver=Liver*|hepar,tumour=GTV*")
    return Patterns(by_name)
