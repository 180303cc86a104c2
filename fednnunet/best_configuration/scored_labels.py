"""Labels that configurations are compared by, and the segmentations that post-processing may choose among."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from fednnunet.datasets.description import label_values, regions_of
from fednnunet.errors import DataError

Label = int | tuple[int, ...]
"""A label's value, or the values of a region, as nnU-Net names them."""
MOST_OVERLAPPING = 6
"""Regions that overlap each other. One more doubles the segmentations that are scored."""


class State(NamedTuple):
    """A segmentation after some of the steps of post-processing.

    Attributes:
        whole: whether only the largest component of the whole foreground was kept.
        steps: numbers of the labels, of which, in this order, only the largest component was kept after that.
    """

    whole: bool
    steps: tuple[int, ...]


@dataclass(frozen=True)
class ScoredLabels:
    """Foreground labels, or regions, of a model, in nnU-Net's order.

    Attributes:
        values: label or region each.
        names: name of each in ``dataset.json``.
        foreground: values of the whole foreground.
        ignore: value of voxels that are not scored; None if there is none.
    """

    values: tuple[Label, ...]
    names: tuple[str, ...]
    foreground: tuple[int, ...]
    ignore: int | None

    @classmethod
    def of(cls, labels: Mapping[str, Any]) -> ScoredLabels:
        """As nnU-Net's ``LabelManager`` reads ``labels`` of ``dataset.json``."""
        ignore = labels.get("ignore")
        single = label_values({name: value for name, value in labels.items() if name != "ignore"}) - {0}
        foreground = tuple(sorted(single))
        names: dict[Label, list[str]]
        if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
            # dict: what is there twice counts once in nnU-Net's mean
            names = {}
            for name in regions_of(labels):
                value = labels[name]
                names.setdefault(tuple(value) if isinstance(value, list) else value, []).append(name)
        else:
            names = {value: [] for value in foreground}
            for name in regions_of(labels):
                (value,) = label_values({name: labels[name]})
                names[value].append(name)
        return cls(tuple(names), tuple("/".join(same) for same in names.values()), foreground, ignore)

    @property
    def keys(self) -> tuple[str, ...]:
        """Labels as nnU-Net's ``summary.json`` writes them."""
        return tuple(map(str, self.values))

    def held(self, number: int) -> tuple[int, ...]:
        """Values of the voxels of a label or region, by its number."""
        value = self.values[number]
        return value if isinstance(value, tuple) else (value,)

    def groups(self) -> list[tuple[int, ...]]:
        """Numbers of labels, together where a step of one changes the voxels of another: regions that overlap."""
        groups: list[set[int]] = []
        for number in range(len(self.values)):
            values = set(self.held(number))
            touched = [group for group in groups if any(values & set(self.held(other)) for other in group)]
            groups = [group for group in groups if group not in touched] + [set().union({number}, *touched)]
        return sorted(tuple(sorted(group)) for group in groups)


def states_of(labels: ScoredLabels, postprocessing: bool = True) -> dict[State, tuple[int, ...]]:
    """Every segmentation that nnU-Net's choice of post-processing may come to, with the labels that it changes.

    nnU-Net asks first for the whole foreground, then label by label, each time on top of what was chosen before. A
    label's step changes no label that it does not overlap, so that answers for one group do not depend on another's.

    Args:
        labels: foreground labels.
        postprocessing: whether there is a choice; without, only segmentations as they are.

    Raises:
        DataError: more than :data:`MOST_OVERLAPPING` regions overlap.
    """
    largest = max(labels.groups(), key=len, default=())
    if postprocessing and len(largest) > MOST_OVERLAPPING:
        raise DataError(
            f"{len(largest)} regions overlap ({', '.join(labels.names[number] for number in largest)}); at most "
            f"{MOST_OVERLAPPING} can be post-processed one by one: compare with --no-postprocessing"
        )
    everything = tuple(range(len(labels.values)))
    states: dict[State, tuple[int, ...]] = {}
    for whole in (False, True) if postprocessing else (False,):
        states[State(whole, ())] = everything
        if len(everything) > 1 and postprocessing:
            for group in labels.groups():
                states |= {State(whole, steps): group for steps in _subsets(group)}
    return states


def _subsets(group: Sequence[int]) -> list[tuple[int, ...]]:
    return [steps for size in range(1, len(group) + 1) for steps in combinations(group, size)]
