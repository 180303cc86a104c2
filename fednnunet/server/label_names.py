"""Names of labels and channels: which can be, and which may mean one thing; only people know, so that they are told."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher
from itertools import combinations

from fednnunet.errors import DataError
from fednnunet.exchange.messages import MAX_NAME

NAMED = 5
"""Most labels, channels or nodes that a message names."""
BRITISH = (("our", "or"), ("ae", "e"), ("oe", "e"))
"""Spellings, and how Americans write them: tumour, haemorrhage, oedema."""
LIKENESS = 0.88
"""Of two words, twice the letters in common over all letters, from which one may be a misspelling of the other.

It takes a letter too many or too few in words of four (0.89), and tells hyperintense from hypointense (0.87).
"""


def check_names(names: Collection[str], where: str) -> None:
    """Check that names of labels or channels can be told to nodes.

    Raises:
        DataError: names ``where`` and the first that is empty, too long or not printable.
    """
    for name in names:
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise DataError(f"{where}: {name[:MAX_NAME]!r} must be 1 to {MAX_NAME} printable characters")


def similar_names(annotated: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    """Pairs of names, sorted, that differ by case, separators, a plural s, or spelling.

    Two labels of one node are two structures. Numbers are no spelling: ``rib_1`` and ``rib_2`` are not similar.

    Args:
        annotated: Node to its labels.
    """
    holders: dict[str, set[str]] = {}
    for node, labels in annotated.items():
        for name in labels:
            holders.setdefault(name, set()).add(node)
    words = {name: _words(name) for name in sorted(holders)}
    return [
        (one, other)
        for one, other in combinations(words, 2)
        if _are_alike(words[one], words[other]) and not holders[one] & holders[other]
    ]


def _words(name: str) -> list[str]:
    """Words of a name, as they are compared: without case, plural and British spelling."""
    words = re.findall(r"[^\W\d_]+|\d+", name.casefold())
    for british, american in BRITISH:
        words = [word.replace(british, american) for word in words]
    return [word.removesuffix("s") if len(word) > 3 else word for word in words]


def _are_alike(ours: list[str], theirs: list[str]) -> bool:
    if "".join(ours) == "".join(theirs):
        return bool(ours)
    if len(ours) != len(theirs):
        return False
    differing = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    if len(differing) != 1 or any(word.isdigit() for word in differing[0]):
        return False
    matcher = SequenceMatcher(None, *differing[0], autojunk=False)
    return matcher.real_quick_ratio() >= LIKENESS and matcher.ratio() >= LIKENESS
