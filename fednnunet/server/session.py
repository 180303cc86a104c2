"""One run at the server: its settings, its nodes, and what every phase needs to work on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fednnunet.datasets.description import in_nnunets_order
from fednnunet.errors import FednnUNetError
from fednnunet.exchange import messages
from fednnunet.exchange.messages import ExchangeDtype, Fold
from fednnunet.server.channel_union import ChannelUnion
from fednnunet.server.label_union import LabelUnion, plain_labels

if TYPE_CHECKING:
    from fednnunet.server.node_client import NodeClient
    from fednnunet.server.run_recorder import RunRecorder
    from fednnunet.server.strategy.base import Strategy

TASK = ("channel_names", "labels", "regions_class_order")
"""Fields of ``dataset.json`` that make two datasets one segmentation task."""


def task_fields(unites_labels: bool, unites_channels: bool) -> list[str]:
    """Those of :data:`TASK` in which nodes have to agree."""
    return [field for field in TASK if not (unites_channels if field == "channel_names" else unites_labels)]


@dataclass(frozen=True)
class ServerSettings:
    """The configuration of a run that concerns the server.

    Attributes:
        fingerprint: how the fingerprint that every node plans from is merged (FFE); None where each plans from its own.
        geometry: whether nodes are asked for the sizes of every case, or only for counts.
        needed_intensities: nodes are asked for intensities of those channels alone that nnU-Net normalises by them.
        epsilon: nodes add noise of this privacy loss to their counts; None where they add none.
        folds: folds to train, one after another.
        timeout: seconds to wait for the replies of a stage or round; None waits without limit.
        local_epochs: epochs that nodes train between two aggregations.
        heterogeneous_tasks: nodes may differ in channels and labels.
        labels: whether nodes must have the ``same`` labels, or one network is trained for the ``union`` of theirs.
        channels: the same of channels.
        min_nodes: the run goes on without nodes that fail or do not reply while so many do; None needs all.
        dtype: data type that layers are rounded to while they travel in training.
        cross_centre: also evaluate every node's model on the held-out cases of every other node.
        expected_nodes: number of nodes that the first stage waits for; None takes those that are connected then.
        wait_for_nodes: nodes that cannot be reached come back, and are waited for.
        run: id of this run, where nodes are not started for it; the same when it is resumed.
        shared_config: configuration that nodes are sent (:class:`~fednnunet.config.run.SharedRunConfig`).
        centres: names that nodes may have, and whether each is external; None takes any.
        find_duplicates: request salted digests of images, and warn of images that two nodes hold.
        secure_run: id of this run for secure sums; None where layers travel as they are.
        colluding: nodes of secure sums that may help a curious server.
        train_layers: parts of the names of the layers that nodes train, and so exchange; empty for all.
        accept_useless_noise: train even where noise is much larger than what it hides.
        personal: how nodes come to models of their own, which stay there; None where they end with the federation's.
    """

    fingerprint: Literal["histogram", "weighted_mean"] | None
    folds: Sequence[Fold]
    timeout: float | None
    geometry: Literal["cases", "sums"] = "cases"
    needed_intensities: bool = False
    epsilon: float | None = None
    local_epochs: int = 1
    heterogeneous_tasks: bool = False
    labels: Literal["same", "union"] = "same"
    channels: Literal["same", "union"] = "same"
    min_nodes: int | None = None
    dtype: ExchangeDtype = "float32"
    cross_centre: bool = False
    expected_nodes: int | None = None
    wait_for_nodes: bool = False
    run: str | None = None
    shared_config: Mapping[str, Any] | None = None
    centres: Mapping[str, bool] | None = None
    find_duplicates: bool = False
    secure_run: str | None = None
    colluding: int = 0
    train_layers: Sequence[str] = ()
    accept_useless_noise: bool = False
    personal: messages.PersonalTraining | None = None

    @property
    def needs_all_nodes(self) -> bool:
        """Whether the first failure of a node ends the run."""
        return self.min_nodes is None

    def fingerprint_request(self, **fields: Any) -> messages.FingerprintRequest:
        """A request for a fingerprint; the first of a run that a node gets carries the run's configuration."""
        config = None if self.shared_config is None else dict(self.shared_config)
        return messages.FingerprintRequest(run=self.run, shared_config=config, **fields)


@dataclass
class Federation:
    """The nodes of a run and their replies of the first stages, by Flower's node id."""

    described: dict[int, messages.FingerprintReply] = field(default_factory=dict)
    planned: dict[int, messages.PlanReply] = field(default_factory=dict)
    preprocessed: dict[int, messages.PreprocessReply] = field(default_factory=dict)
    rounds: int = 0
    """Rounds of a fold, known once the nodes have said how many epochs they train."""
    labels: LabelUnion | None = None
    """Every label of the nodes, where one network is trained for all of them."""
    channels: ChannelUnion | None = None
    """Every channel of the nodes, in the same way."""
    unlearnt_channels: dict[int, list[str]] = field(default_factory=dict)
    """Training node to the channels that its model has not learnt to use."""

    def name(self, node_id: int) -> str:
        """The node's own name; its id before it is known."""
        return self.described[node_id].node if node_id in self.described else str(node_id)

    def remove(self, nodes: Iterable[int]) -> None:
        """Go on without these nodes."""
        for node in nodes:
            for replies in (self.described, self.planned, self.preprocessed):
                replies.pop(node, None)

    @property
    def nodes(self) -> list[int]:
        """All nodes, sorted by name."""
        return sorted(self.described, key=self.name)

    @property
    def training(self) -> list[int]:
        """Nodes with training cases, sorted by name."""
        return [node for node in self.nodes if not self.described[node].external]

    @property
    def external(self) -> list[int]:
        """Nodes whose cases only serve for testing, sorted by name."""
        return [node for node in self.nodes if self.described[node].external]

    @property
    def keys(self) -> list[messages.SignedKey]:
        """Keys of the training nodes for secure sums; none where they were not asked for."""
        return [key for node in self.training if (key := self.described[node].key) is not None]

    def of_same_task(self, node: int) -> list[int]:
        """Training nodes with the channels and labels of ``node``, but for those that are united; sorted by name."""
        fields = task_fields(self.labels is not None, self.channels is not None)
        return [other for other in self.training if all(self.agree(node, other, field) for field in fields)]

    def agree(self, node: int, other: int, field: str) -> bool:
        """Whether a field of two nodes' ``dataset.json`` means the same to nnU-Net."""
        ours, theirs = (getattr(self.described[one], field) for one in (node, other))
        return in_nnunets_order(field, ours) == in_nnunets_order(field, theirs)

    def labels_to_score(self, node: int) -> dict[str, int] | None:
        """Labels that ``node`` has to be told to score models: an external one that has not those of the network."""
        if self.labels is None or node not in self.external:
            return None
        return self.labels.for_external(plain_labels(self.described[node]))

    def channels_to_score(self, node: int) -> list[str] | None:
        """Channels that ``node`` has to be told to score models: an external one that has not those of the network."""
        if self.channels is None or node not in self.external:
            return None
        return self.channels.for_external(self.name(node))

    def holds_none_out(self, node: int, fold: Fold) -> bool:
        """Whether a node trains on all of its cases in ``fold``, so that it has no scores of it."""
        held_out = self.described[node].held_out.values()
        return bool(held_out) and all(folds.get(fold) == 0 for folds in held_out)

    @property
    def num_training(self) -> int:
        """Number of training cases of all nodes."""
        return sum(reply.num_training for reply in self.described.values())


@dataclass
class Session:
    """What the phases of a run share.

    Attributes:
        client: sends requests to the nodes.
        settings: the configuration.
        strategy: matches and aggregates the nodes' layers.
        recorder: writes the run's files and informs the observers.
        federation: the nodes; empty before they have registered.
        final_models: fold to the nodes that have a final model of it.
    """

    client: NodeClient
    settings: ServerSettings
    strategy: Strategy
    recorder: RunRecorder
    federation: Federation = field(default_factory=Federation)
    final_models: dict[Fold, list[int]] = field(default_factory=dict)

    def accept_failures(
        self,
        failures: Sequence[FednnUNetError],
        remaining: int | None = None,
        consequence: str = "the federation goes on without it",
    ) -> None:
        """Go on without nodes that failed, and say so, where the run may miss nodes.

        This is the only place that decides it: ``settings.min_nodes``.

        Args:
            failures: one per node.
            remaining: number of nodes that did not fail; None where the step needs none of them.
            consequence: what follows for each of these nodes, for the operator.

        Raises:
            FednnUNetError: the first failure, where the run needs all nodes, or more than ``remaining``.
        """
        least = self.settings.min_nodes
        if failures and (least is None or (remaining is not None and remaining < least)):
            raise failures[0]
        for error in failures:
            self.recorder.on_message(f"{error}; {consequence}")
