"""Weighted mean of layers that the server cannot see: the sums of masked integers, opened class by class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import check_finite
from fednnunet.exchange.messages import Fold, LayerClass
from fednnunet.privacy.figures import FIGURE_NAMES, FIGURES, mean_figures
from fednnunet.privacy.ring import FixedPoint, add
from fednnunet.privacy.secure_sum import SumRules, remove_masks
from fednnunet.server.strategy.averaging import check_layers
from fednnunet.server.strategy.layer_groups import LayerGroups
from fednnunet.server.strategy.reply_validation import ReplyValidator

Bundles = Sequence[Mapping[str, str]]
"""Class by class, member to the shares for it, which it alone can read."""
Shares = Mapping[str, Sequence[Mapping[str, Mapping[str, bytes]]]]
"""Name of a node to what it replied, class by class: arrival to shares by name."""


@dataclass(frozen=True)
class SumsToOpen:
    """Sums of a round that members are asked to open.

    Attributes:
        fold: the fold.
        server_round: the round.
        arrived: class by class, members whose layers are in the sum; none where it is not to be opened.
        bundles: name of a node to the shares that it sent.
        spare: number of these nodes whose answers are not needed.
    """

    fold: Fold
    server_round: int
    arrived: Sequence[Sequence[str]]
    bundles: Mapping[str, Bundles]
    spare: int


OpenSums = Callable[[SumsToOpen], Shares]
"""Asks nodes to open sums."""


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
    groups: LayerGroups, names: Mapping[int, str], nodes: Collection[int], counters: Collection[str], rules: SumRules
) -> list[GroupClass]:
    """Classes of a round; those of too few nodes to be summed are left out.

    The first one is of all nodes, for the round's figures; it may be without layers.

    Args:
        groups: layers that each node exchanges.
        names: node id to name.
        nodes: ids of the nodes of the round.
        counters: groups of integers, which travel as they are.
        rules: how many must take part.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for group in groups.of_node(node).values():
            members[group].append(names[node])
    classes: dict[tuple[str, ...], list[str]] = {tuple(sorted(names[node] for node in nodes)): []}
    for group in groups.names:
        if group in members and group not in counters:
            classes.setdefault(tuple(sorted(members[group])), []).append(group)
    return [GroupClass(m, tuple(g)) for m, g in classes.items() if len(m) >= rules.fewest_arrivals(len(m))]


class MaskedReplyValidator(ReplyValidator):
    """Checks replies whose layers are masked: their values and norms say nothing.

    Attributes:
        classes: classes of the round, set before it begins.
    """

    classes: Sequence[GroupClass] = ()

    def validate_arrays(
        self, node: int, arrays: Mapping[str, np.ndarray], where: str
    ) -> tuple[dict[str, np.ndarray], float | None, float | None]:
        """Check names, shapes and types; there are no norms."""
        groups = self._groups.of_node(node)
        masked = {group for one in self.classes if self._names[node] in one.members for group in one.groups}
        asked = {
            layer: shape
            for layer, shape in self._groups.shapes_of(node).items()
            if groups[layer] in masked or self._dtypes[groups[layer]].kind in "iu"
        }
        check_layers(arrays, {**asked, FIGURES: (2 * len(FIGURE_NAMES),)}, where)
        for layer, array in arrays.items():
            group = groups.get(layer, FIGURES)
            wanted = np.dtype(np.int32) if group in masked or group == FIGURES else self._dtypes[group]
            if array.dtype != wanted:
                raise ProtocolError(f"{where} sent layer {layer} as {array.dtype} instead of {wanted}")
        return {groups.get(layer, FIGURES): array for layer, array in arrays.items()}, None, None


class SecureAverage:
    """Weighted means of a round's layers, from masked integers.

    Args:
        classes: of the round.
        rules: how many must take part.
        limit: largest size of an addend.

    Attributes:
        figures: mean figures of the round, after :meth:`result`.
    """

    def __init__(self, classes: Sequence[GroupClass], rules: SumRules, limit: float) -> None:
        self.classes, self.rules = classes, rules
        self.figures: dict[str, float | None] = {}
        self._limit = limit
        self._masked = {group for one in classes for group in one.groups} | {FIGURES}
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, float] = {}
        self._bundles: dict[str, Bundles] = {}

    def requests(self, groups: LayerGroups, node: int, name: str) -> list[LayerClass]:
        """The classes as a node's request states them: in its own names, without layers where it is no member."""
        layer_of = {group: layer for layer, group in groups.of_node(node).items()}
        return [
            LayerClass(
                members=list(one.members),
                layers=[layer_of[group] for group in one.groups] if name in one.members else [],
            )
            for one in self.classes
        ]

    def add(self, name: str, arrays: Mapping[str, np.ndarray], weight: float, bundles: Bundles) -> None:
        """Add one node's masked layers, by group, and its figures.

        Args:
            name: name of the node.
            arrays: int32, by group.
            weight: that the node gave its layers.
            bundles: its shares for the other members.
        """
        for group in self._masked & arrays.keys():
            if group in self._sums:
                add(self._sums[group], arrays[group])
            else:
                self._sums[group] = arrays[group].copy()
        self._weights[name], self._bundles[name] = weight, bundles

    def result(self, fold: Fold, server_round: int, open_sums: OpenSums) -> dict[str, np.ndarray]:
        """Means by group; groups whose sums are not opened are left out.

        Args:
            fold: the fold.
            server_round: the round.
            open_sums: asks the nodes.

        Raises:
            VoidRound: nothing of this round can be used.
        """
        arrived = [sorted(set(one.members) & self._weights.keys()) for one in self.classes]
        arrived = [
            names if len(names) >= self.rules.fewest_arrivals(len(one.members)) else []
            for one, names in zip(self.classes, arrived, strict=True)
        ]
        if not any(arrived):
            raise VoidRound("too few nodes sent their layers for any sum to be opened")
        spare = min(
            len(names) - self.rules.threshold(len(one.members))
            for one, names in zip(self.classes, arrived, strict=True)
            if names
        )
        shares = open_sums(SumsToOpen(fold, server_round, arrived, self._bundles, spare))
        means: dict[str, np.ndarray] = {}
        for number, (one, names) in enumerate(zip(self.classes, arrived, strict=True)):
            if names:
                given = {holder: replies[number] for holder, replies in shares.items() if number < len(replies)}
                try:
                    means |= self._open(one, names, given, with_figures=number == 0)
                except ProtocolError as error:
                    raise VoidRound(str(error)) from None
        return means

    def _open(
        self,
        one: GroupClass,
        arrived: Sequence[str],
        shares: Mapping[str, Mapping[str, Mapping[str, bytes]]],
        with_figures: bool,
    ) -> dict[str, np.ndarray]:
        """Means of a class.

        Raises:
            ProtocolError: too few shares, or what they open is no sum of layers.
        """
        totals = [self._sums[key] for key in (*one.groups, *([FIGURES] if with_figures else []))]
        remove_masks(totals, one.members, arrived, shares, self.rules)
        point, weight = FixedPoint(len(one.members), self._limit), sum(self._weights[name] for name in arrived)
        means = {group: point.decode(self._sums.pop(group), weight) for group in one.groups}
        check_finite(means, "the sum")
        if with_figures:
            self.figures = mean_figures(point.decode(self._sums[FIGURES], len(arrived)))
        return means
