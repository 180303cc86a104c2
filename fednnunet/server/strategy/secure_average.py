"""Weighted mean of layers that the server cannot see: the sums of masked integers, opened class by class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import LayerClass
from fednnunet.privacy.figures import FIGURES, mean_figures
from fednnunet.privacy.ring import FixedPoint, add
from fednnunet.privacy.secure_sum import SumRules, remove_masks
from fednnunet.server.strategy.layer_groups import LayerGroups
from fednnunet.server.strategy.reply_validation import Update

Shares = Mapping[str, Sequence[Mapping[str, Mapping[str, bytes]]]]
"""Name of a node to what it replied, class by class: arrival to shares by name."""
OpenSums = Callable[[Sequence[Sequence[str]]], Shares]
"""Asks nodes to open sums: class by class, the names of the arrivals."""


class VoidRound(Exception):
    """The sums of a round cannot be opened, or are no sums of layers; nothing of them is used."""


@dataclass(frozen=True)
class GroupClass:
    """Groups of layers that the same nodes of a round have.

    Attributes:
        members: their names, sorted.
        groups: names of the groups, in the order in which layers are masked.
    """

    members: tuple[str, ...]
    groups: tuple[str, ...]


def classes_of(
    groups: LayerGroups, names: Mapping[int, str], nodes: Collection[int], rules: SumRules
) -> list[GroupClass]:
    """Classes of a round, the largest first; those of too few nodes to be summed are left out.

    Args:
        groups: layers that each node exchanges.
        names: node id to name.
        nodes: ids of the nodes of the round.
        rules: how many must take part.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for group in groups.of_node(node).values():
            members[group].append(names[node])
    classes: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in groups.names:
        if group in members:
            classes[tuple(sorted(members[group]))].append(group)
    kept = [GroupClass(m, tuple(g)) for m, g in classes.items() if len(m) >= rules.fewest_arrivals(len(m))]
    return sorted(kept, key=lambda one: -len(one.members))


class SecureAverage:
    """Weighted means of a round's layers, from masked integers.

    Args:
        classes: of the round.
        weights: name of a node to its weight, at most 1.
        rules: how many must take part.
        limit: largest size of an addend.
        open_sums: asks the nodes to open the sums.

    Attributes:
        figures: mean figures of the round, after :meth:`result`.
    """

    def __init__(
        self,
        classes: Sequence[GroupClass],
        weights: Mapping[str, float],
        rules: SumRules,
        limit: float,
        open_sums: OpenSums,
    ) -> None:
        self.classes, self.rules = classes, rules
        self.figures: dict[str, float | None] = {}
        self._weights, self._limit, self._open_sums = weights, limit, open_sums
        self._sums: dict[str, np.ndarray] = {}
        self._arrived: list[str] = []

    def requests(self, groups: LayerGroups, node: int, name: str) -> list[LayerClass]:
        """The classes as a node's request states them: in its own names, empty where it is no member."""
        layer_of = {group: layer for layer, group in groups.of_node(node).items()}
        return [
            LayerClass(
                members=list(one.members),
                layers=[layer_of[group] for group in one.groups] if name in one.members else [],
                weight=self._weights[name],
            )
            for one in self.classes
        ]

    def add(self, update: Update) -> None:
        """Add one node's masked layers."""
        for group, array in update.arrays.items():
            if group not in self._sums:
                self._sums[group] = np.zeros(array.shape, array.dtype)
            add(self._sums[group], array)
        self._arrived.append(update.name)

    def result(self) -> dict[str, np.ndarray]:
        """Means by group; groups whose sums are not opened are left out.

        Raises:
            VoidRound: nothing of this round can be used.
        """
        arrived = [sorted(set(one.members) & set(self._arrived)) for one in self.classes]
        arrived = [
            names if len(names) >= self.rules.fewest_arrivals(len(one.members)) else []
            for one, names in zip(self.classes, arrived, strict=True)
        ]
        if not any(arrived):
            raise VoidRound("too few nodes sent their layers for any sum to be opened")
        shares = self._open_sums(arrived)
        means: dict[str, np.ndarray] = {}
        for number, (one, names) in enumerate(zip(self.classes, arrived, strict=True)):
            if not names:
                continue
            keys = [*one.groups, *([FIGURES] if number == 0 else [])]
            totals = [self._sums[key] for key in keys]
            given = {holder: replies[number] for holder, replies in shares.items() if number < len(replies)}
            point = FixedPoint(len(one.members), self._limit)
            try:
                remove_masks(totals, one.members, names, given, self.rules)
                weight = sum(self._weights[name] for name in names)
                means |= {group: point.decode(self._sums[group], weight) for group in one.groups}
                if number == 0:
                    self.figures = mean_figures(point.decode(self._sums[FIGURES], len(names)))
            except ProtocolError as error:
                raise VoidRound(str(error)) from None
        return means
