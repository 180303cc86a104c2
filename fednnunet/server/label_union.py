"""Every label of a federation: its value in the common network, and which nodes annotate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fednnunet.config.task import BACKGROUND, IGNORE, unite_labels
from fednnunet.errors import DataError
from fednnunet.exchange.messages import MAX_LABELS, FingerprintReply
from fednnunet.listing import join_first, join_nodes
from fednnunet.server.label_names import NAMED, check_names

Values = Mapping[str, int]
"""Name of a label to its value."""


@dataclass(frozen=True)
class LabelUnion:
    """The labels of all training nodes, by name.

    Attributes:
        values: Name to value; ``background`` is 0, ``ignore``, if there is one, has the highest.
        annotated: Name of a node to the labels that it annotates; external nodes are in it, too.
        differs: Whether a training node lacks one, or has it under another value: nodes then have to be told.
    """

    values: Values
    annotated: Mapping[str, frozenset[str]]
    differs: bool

    @property
    def for_training(self) -> dict[str, int] | None:
        """Labels that training nodes plan with; None where each has them anyway."""
        return dict(self.values) if self.differs else None

    def for_external(self, labels: Values) -> dict[str, int] | None:
        """Labels that models are scored by at an external node of these ones; None where it has them anyway.

        Where it alone ignores voxels, they get the value above all others.
        """
        values = dict(self.values)
        if IGNORE in labels:
            values.setdefault(IGNORE, max(values.values()) + 1)
        return values if self.differs or values != dict(labels) else None

    def rows_of(self, node: str) -> list[bool]:
        """For each class of the network, in its order, whether the node annotates it; all annotate the background."""
        classes = sorted(self.values.keys() - {IGNORE}, key=self.values.__getitem__)
        return [name == BACKGROUND or name in self.annotated[node] for name in classes]

    def annotators(self, label: str) -> list[str]:
        """Names of the nodes that annotate a label, sorted."""
        return sorted(node for node, labels in self.annotated.items() if label in labels)


def plain_labels(reply: FingerprintReply) -> dict[str, int]:
    """The labels of a node, each of one value.

    Raises:
        DataError: names node, field and label: a region, two labels of one value, a name or a value that cannot be, or
            nothing but background.
    """
    where = f"node {reply.node}: labels in dataset.json"
    if len(reply.labels) > MAX_LABELS + 1:
        raise DataError(f"{where}: there are {len(reply.labels)}; at most {MAX_LABELS + 1} are possible")
    check_names(reply.labels, where)
    regions = [name for name, value in reply.labels.items() if isinstance(value, list) and len(value) != 1]
    if regions or reply.regions_class_order is not None:
        what = f"{regions[0]} is a region" if regions else "regions_class_order is set"
        raise DataError(
            f"{where}: {what}; task.labels=union takes labels of one value each: give each structure its own, or leave "
            "task.labels=same where all nodes have the same regions"
        )
    values = {name: value[0] if isinstance(value, list) else value for name, value in reply.labels.items()}
    named: dict[int, str] = {}
    for name, value in values.items():
        if not 0 <= value <= MAX_LABELS:
            raise DataError(f"{where}: {name} has value {value}; it must be 0 to {MAX_LABELS}")
        if value in named:
            raise DataError(f"{where}: {named[value]} and {name} both have value {value}; give each its own")
        named[value] = name
    if named.get(0) != BACKGROUND:
        raise DataError(f"{where}: background must have value 0")
    if not values.keys() - {BACKGROUND, IGNORE}:
        raise DataError(f"{where}: there is none but background, so it annotates nothing")
    return values


def unite(training: Mapping[str, Values], external: Mapping[str, Values], known: Values | None = None) -> LabelUnion:
    """The union of the labels of all training nodes.

    Where they all have the same labels with the same values, these stay. Otherwise values follow from the names alone,
    whatever the order of the nodes: ``background`` 0, the others by name from 1, ``ignore`` last.

    Args:
        training: Name of a training node to its labels.
        external: The same of external nodes.
        known: Labels that an interrupted run began with; its networks have those.

    Raises:
        DataError: More labels than values; a node with a label that is not in ``known``; or an external node without a
            label of the training nodes. Names node and field.
    """
    values = dict(known) if known else unite_labels(training)
    everyone = {**training, **external}
    number = len(values.keys() | ({IGNORE} if any(IGNORE in labels for labels in external.values()) else set()))
    if number > MAX_LABELS + 1:
        raise DataError(
            f"the nodes {join_nodes(list(everyone))} have {number} labels in dataset.json altogether; at most "
            f"{MAX_LABELS + 1} are possible: see task.rename_labels for those of one structure"
        )
    for node, labels in training.items():
        new = sorted(labels.keys() - values.keys())
        if new:
            raise DataError(
                f"node {node}: labels in dataset.json: {new[0]} is not among the labels that the run began with "
                "(labels.csv), for which its network was made; start another run"
            )
    for node, labels in external.items():
        if not (labels.keys() & values.keys()) - {BACKGROUND, IGNORE}:
            raise DataError(
                f"external node {node}: labels in dataset.json: no training node has one of "
                f"{join_first(foreground(labels), NAMED)}; see task.rename_labels"
            )
    annotated = {node: frozenset(labels.keys() & values.keys()) for node, labels in everyone.items()}
    return LabelUnion(values, annotated, any(dict(labels) != values for labels in training.values()))


def foreground(labels: Values) -> list[str]:
    """Names of the structures among labels, sorted."""
    return sorted(labels.keys() - {BACKGROUND, IGNORE})


# what may be a mistake ---------------------------------------------------------------------------------


def without_company(training: Mapping[str, Values]) -> list[str]:
    """Nodes that share no structure with another one, where others do share some: it may be called otherwise there.

    Where no two nodes share any, as with one organ each, there is none.
    """
    holders: dict[str, set[str]] = {}
    for node, labels in training.items():
        for name in foreground(labels):
            holders.setdefault(name, set()).add(node)
    in_company = set().union(*(nodes for nodes in holders.values() if len(nodes) > 1))
    return sorted(training.keys() - in_company) if in_company else []
