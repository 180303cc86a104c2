"""What series and structures are called in DICOM: patterns of their descriptions and folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fednnunet.errors import DataError
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


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Name and patterns of each part of ``NAME=PATTERN|PATTERN,NAME``; a name alone is its own pattern.

    >>> pairs_of("T2=t2_tse*|*t2w*,ADC")
    [('T2', 't2_tse*|*t2w*'), ('ADC', 'ADC')]
    """
    cut = (part.partition("=") for part in split_list(text))
    return [(name.strip(), patterns if sign else name.strip()) for name, sign, patterns in cut]


def texts_of(description: str, path: Path, folder: Path) -> list[str]:
    """What a pattern may fit: a description, a path below a folder, and its last part."""
    return [description, str(path.relative_to(folder)), path.name]
