"""Lists in one line of text: those of messages, and those of options."""

from __future__ import annotations

from collections.abc import Sequence


def join_all(texts: Sequence[str]) -> str:
    """All of one text or more.

    >>> join_all(["image", "label", "plans"])
    'image, label and plans'
    """
    return ", ".join(texts[:-1]) + (" and " if len(texts) > 1 else "") + texts[-1]


def join_first(texts: Sequence[str], most: int) -> str:
    """The first ``most`` texts, and how many more there are.

    >>> join_first(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def split_list(text: str) -> list[str]:
    """What stands between commas, but for nothing.

    >>> split_list("T1, T2,")
    ['T1', 'T2']
    """
    return [part.strip() for part in text.split(",") if part.strip()]
