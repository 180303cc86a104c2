"""What the server is told of a run, and knows of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fednnunet.exchange import messages
from fednnunet.exchange.messages import ExchangeDtype, Fold

TASK = ("channel_names", "labels", "regions_class_order")
"""What makes two datasets one task, in ``dataset.json``."""


@dataclass(frozen=True)
class ServerSettings:
    """What the server is told.

    Attributes:
        fingerprint: how the fingerprint that every node plans from is merged (FFE); None where each plans from its own.
        folds: to train, one after another.
        timeout: seconds to wait for the replies of a stage or round; None waits for ever.
        local_epochs: that nodes train between two aggregations.
        heterogeneous_tasks: nodes may differ in channels and labels.
        min_nodes: go on without nodes that fail or do not reply while so many are in; None needs all.
        dtype: that layers are rounded to while they travel in training.
        cross_centre: score every node's model on every other node's held-out cases, too.
        nodes: of the federation, which the first stage waits for; None takes those that the grid has when it begins.
        patient: nodes that cannot be reached come back, and are waited for.
        run: id of this run, where nodes are to be told of it; the same when it goes on.
        task: what nodes are told to do in it (:class:`~fednnunet.config.run.SharedRunConfig`).
        centres: names that nodes may have, and whether each only tests; None takes any.
        find_duplicates: ask for salted digests of images, and warn of those that two nodes hold.
    """

    fingerprint: Literal["histogram", "weighted_mean"] | None
    folds: Sequence[Fold]
    timeout: float | None
    local_epochs: int = 1
    heterogeneous_tasks: bool = False
    min_nodes: int | None = None
    dtype: ExchangeDtype = "float32"
    cross_centre: bool = False
    nodes: int | None = None
    patient: bool = False
    run: str | None = None
    task: Mapping[str, Any] | None = None
    centres: Mapping[str, bool] | None = None
    find_duplicates: bool = False

    def fingerprint_request(self, **asked: Any) -> messages.FingerprintRequest:
        """A request for a fingerprint; the first of a run that a node gets tells it the task."""
        return messages.FingerprintRequest(run=self.run, task=None if self.task is None else dict(self.task), **asked)


@dataclass
class Federation:
    """The nodes of a run and what they told of themselves, by Flower's node id."""

    described: dict[int, messages.FingerprintReply]
    planned: dict[int, messages.PlanReply] = field(default_factory=dict)
    preprocessed: dict[int, messages.PreprocessReply] = field(default_factory=dict)
    rounds: int = 0
    """Of a fold, once the nodes have told how many epochs they train."""

    def name(self, node_id: int) -> str:
        """The node's own name; its id before it is known."""
        return self.described[node_id].node if node_id in self.described else str(node_id)

    def leave_out(self, nodes: Iterable[int]) -> None:
        """Go on without these nodes."""
        for node in nodes:
            for told in (self.described, self.planned, self.preprocessed):
                told.pop(node, None)

    @property
    def training(self) -> list[int]:
        """Nodes with training cases, sorted by name."""
        return [node for node in self.by_name() if not self.described[node].external]

    @property
    def external(self) -> list[int]:
        """Nodes that only test, sorted by name."""
        return [node for node in self.by_name() if self.described[node].external]

    def of_same_task(self, node: int) -> list[int]:
        """Training nodes with the channels and labels of ``node``, sorted by name."""
        task = [getattr(self.described[node], what) for what in TASK]
        return [n for n in self.training if [getattr(self.described[n], what) for what in TASK] == task]

    def by_name(self) -> list[int]:
        """All nodes, sorted by name."""
        return sorted(self.described, key=self.name)

    @property
    def num_training(self) -> int:
        """Training cases of all nodes."""
        return sum(reply.num_training for reply in self.described.values())
