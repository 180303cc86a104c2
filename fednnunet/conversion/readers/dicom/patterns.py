"""Names of channels and labels, and what they are called in DICOM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fednnunet.conversion.names import LARGEST_VALUE, read_json
from fednnunet.errors import ConfigError, DataError
from fednnunet.listing import split_list


@dataclass(frozen=True)
class Patterns:
    """Name to what it may be called, in the order that was given; upper and lower case are one.

    Attributes:
        by_name: name to patterns in which ``*`` and ``?`` stand for any letters and any letter.
    """

    by_name: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in their order."""
        return tuple(self.by_name)

    def matches(self, name: str, texts: Iterable[str]) -> bool:
        """Whether one of ``texts`` is called as ``name`` may be."""
        return is_called(texts, self.by_name[name])

    def name_of(self, text: str) -> str | None:
        """The name that may be called ``text``, or None.

        Raises:
            DataError: two names may.
        """
        names = [name for name in self.by_name if self.matches(name, [text])]
        if len(names) > 1:
            raise DataError(f"{text!r} is called both {names[0]} and {names[1]} by the patterns; make them stricter")
        return names[0] if names else None


def is_called(texts: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether one of ``texts`` fits one of ``patterns``, which are in lower case."""
    patterns = list(patterns)
    return any(fnmatchcase(text.casefold(), pattern) for text in texts for pattern in patterns)


def split_patterns(text: str) -> tuple[str, ...]:
    """Patterns between ``|``, in lower case."""
    return tuple(part.strip().casefold() for part in text.split("|") if part.strip())


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
    if text.endswith(".json"):
        pairs = read_json(Path(text)).items()
    else:
        cut = (part.partition("=") for part in split_list(text))
        pairs = ((name.strip(), patterns if sign else name) for name, sign, patterns in cut)
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
