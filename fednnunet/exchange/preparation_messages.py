"""Messages before training: what a node's data are, its plans, preprocessing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fednnunet.exchange.data_notes import DataNote, NoteKind
from fednnunet.exchange.message_fields import (
    MAX_CENTRES,
    Body,
    Fold,
    Hex32,
    LayerName,
    NodeName,
    RunId,
    SignedKey,
    UnionChannels,
    UnionLabels,
)
from fednnunet.exchange.quantities import Counts, Questions

Salt = Hex32
"""Random, drawn for each run."""
SaltedDigest = Hex32
"""HMAC-SHA256 of an image's decoded voxels, keyed with the salt; see :mod:`fednnunet.exchange.digests`."""
MAX_DIGESTS = 100_000
"""Most digests of one node: the number of an external node's cases is not known before."""
MAX_FINE_TUNE_EPOCHS = 100_000
"""Most epochs that a server may ask a node to train on alone."""
MAX_DIMENSIONS = 8
MAX_LENGTH = 2**31
Shape = Annotated[list[Annotated[int, Field(ge=0, le=MAX_LENGTH)]], Field(max_length=MAX_DIMENSIONS)]


class FingerprintRequest(Body):
    """Describe your dataset. It is the first request; a run that has started is answered the same way again.

    Attributes:
        content: part of the fingerprint to send: ``nothing``; the ``ranges`` of foreground intensities; the node's
            ``contribution`` to the federation's fingerprint; of that the ``intensities`` alone; nnU-Net's
            ``statistics`` of the node; or ``counts`` of cases.
        needed: of intensities, those of channels that nnU-Net normalises by them, in a public window.
        below: count the cases that lie below these points.
        keys: keys of all training nodes, where counts are summed securely.
        total_cases: number of training cases of all nodes, for the contribution.
        bins: bins of every channel's histogram, for the contribution.
        run: id of the run, where the node is not started for it: a node that is on another run starts this one.
        shared_config: the run's configuration for the node (:class:`~fednnunet.config.run.SharedRunConfig`).
        salt: send digests of the images, keyed with it, where the node's own configuration allows that.
        secure_run: send a key for the secure sums of the run of this id.
    """

    content: Literal["nothing", "ranges", "contribution", "intensities", "statistics", "counts"] = "nothing"
    needed: bool = False
    below: Questions | None = None
    keys: Annotated[list[SignedKey], Field(max_length=1000)] = Field(default=[])
    total_cases: int | None = Field(default=None, ge=1)
    bins: dict[str, Any] | None = None
    run: RunId | None = None
    shared_config: dict[str, Any] | None = None
    salt: Salt | None = None
    secure_run: RunId | None = None


class FingerprintReply(Body):
    """A node's description of its data: counts, label names and the requested part of its fingerprint, never a case.

    Attributes:
        node: the node's name.
        external: the node has no training cases; its data only serve for testing.
        num_training: number of training cases (all folds).
        configuration: nnU-Net configuration that the node will train.
        channel_names: nnU-Net's ``channel_names``.
        labels: nnU-Net's ``labels`` (a list of values is a region).
        regions_class_order: nnU-Net's ``regions_class_order``, for region-based training.
        file_ending: ending of the image files, such as ``.nii.gz``.
        fingerprint: contribution or statistics; None where neither was requested, and from an external node.
        intensity_ranges: channel to range of its foreground intensities, where requested.
        counts: how many training cases lie below the points asked about, in their order.
        held_out: centre (the node, or each of the pooled ones) to the number of cases that each fold of the run holds
            out, but for fold ``all``.
        resume_rounds: fold to finished rounds from whose checkpoint this node can resume.
        image_digests: salted digests of the images, sorted and without duplicates; None where they were not requested,
            or the node does not send them.
        data_notes: what people should know of the images: kinds and counts of cases.
        key: the node's key for secure sums, where it was requested.
    """

    node: NodeName
    external: bool
    num_training: int = Field(ge=0)
    configuration: str
    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None
    file_ending: str
    fingerprint: dict[str, Any] | None = None
    intensity_ranges: dict[str, Any] | None = None
    counts: Counts | None = None
    held_out: dict[NodeName, dict[Fold, Annotated[int, Field(ge=0)]]] = Field(default={}, max_length=MAX_CENTRES)
    resume_rounds: dict[Fold, list[int]] = Field(default={})
    image_digests: list[SaltedDigest] | None = Field(default=None, max_length=MAX_DIGESTS)
    data_notes: list[DataNote] = Field(default=[], max_length=len(NoteKind))
    key: SignedKey | None = None

    @model_validator(mode="after")
    def _counts_are_of_cases(self) -> FingerprintReply:
        if len({note.kind for note in self.data_notes}) < len(self.data_notes):
            raise ValueError("data_notes: one kind is there twice")
        for note in self.data_notes:
            if not self.external and note.cases > self.num_training:
                raise ValueError(f"data_notes: {note.kind} in {note.cases} of {self.num_training} cases")
        digests = self.image_digests or []
        if len(set(digests)) < len(digests):
            raise ValueError("image_digests: one is there twice")
        if not self.external and len(digests) > self.num_training:
            raise ValueError(f"image_digests: {len(digests)} of {self.num_training} cases")
        return self


class PlanRequest(Body):
    """Plan your network.

    Attributes:
        fingerprint: the federated fingerprint (FFE); None to plan from the node's own.
        num_training: number of training cases that the batch-size cap counts; None for the node's own.
        labels: every label of the federation, name to value, where the network segments them all: background 0, the
            others by name, ``ignore`` last; None where the node's own labels are all.
        channels: every channel of the federation, by name, in the order of the network's input; None where all nodes
            have the same ones, in the same order. The federated fingerprint numbers channels in this order.
    """

    fingerprint: dict[str, Any] | None
    num_training: int | None = Field(default=None, ge=1)
    labels: UnionLabels | None = None
    channels: UnionChannels | None = None


class PlanReply(Body):
    """The node's plans and the layers they lead to.

    Attributes:
        plans: the node's nnU-Net plans.
        layers: trainable tensors and buffers of the network, name to shape.
        buffers: those of ``layers`` that no optimizer trains, such as batch normalization's running statistics.
        num_parameters: number of values in ``layers``.
        heads: those of ``layers`` whose first axis are classes, in the order of their values; none where the network
            has the node's own labels alone.
    """

    plans: dict[str, Any]
    layers: dict[LayerName, Shape]
    buffers: list[LayerName] = Field(default=[])
    num_parameters: int = Field(ge=1)
    heads: list[LayerName] = Field(default=[])

    @model_validator(mode="after")
    def _are_layers(self) -> PlanReply:
        for field, names in (("heads", self.heads), ("buffers", self.buffers)):
            if len(set(names)) < len(names) or not self.layers.keys() >= set(names):
                raise ValueError(f"{field}: one is there twice, or is not a layer")
        return self


class PersonalTraining(Body):
    """How a node comes to a model of its own, which stays there: one of the two.

    Attributes:
        fine_tune_epochs: epochs that it trains on alone, from the last averages.
        learning_rate: initial learning rate of these; None for a tenth of the trainer's.
        tie: weight with which a network that is trained beside the shared one is pulled towards the averages (Ditto).
    """

    fine_tune_epochs: int = Field(default=0, ge=0, le=MAX_FINE_TUNE_EPOCHS)
    learning_rate: float | None = Field(default=None, gt=0)
    tie: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _is_one_of_them(self) -> PersonalTraining:
        if (self.tie is None) == (self.fine_tune_epochs == 0):
            raise ValueError("either fine_tune_epochs, or tie")
        return self


class PreprocessRequest(Body):
    """Run nnU-Net's preprocessing for your plans, and build the trainer of the first fold.

    Attributes:
        fold: the first fold to train.
        local_epochs: epochs of a round.
        personal: how the node comes to a model of its own, where it is to have one.
        secure_run: the layers of the run of this id are summed securely.
        keys: keys of all training nodes for that.
    """

    fold: Fold = 0
    local_epochs: int = Field(default=1, ge=1)
    personal: PersonalTraining | None = None
    secure_run: RunId | None = None
    keys: Annotated[list[SignedKey], Field(max_length=1000)] = Field(default=[])


class NoiseReport(Body):
    """Noise of a node's part of the run.

    Attributes:
        hides: what it hides: a case, or the node.
        noise: noise multiplier: its standard deviation on a sum, in units of the clipping norm.
        releases: noisy sums of the whole run.
        epsilon: privacy loss of the whole run.
        tighter_epsilon: the same by privacy loss distributions; None where the node cannot compute it.
        total_epsilon: privacy loss with all earlier runs on the same cases.
        delta: probability that these do not hold.
        parameters: number of trained values.
        units: cases that are expected in a sum; None for nodes.
    """

    hides: Literal["case", "node"]
    noise: float = Field(gt=0)
    releases: int = Field(ge=1)
    epsilon: float = Field(ge=0)
    tighter_epsilon: float | None = Field(default=None, ge=0)
    total_epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    parameters: int = Field(ge=1)
    units: float | None = Field(default=None, gt=0)


class PreprocessReply(Body):
    """Preprocessing is done.

    Attributes:
        seconds: duration in seconds.
        num_training: number of training cases of the fold.
        num_validation: number of held-out cases of the fold.
        epochs: number of epochs that the node's trainer makes.
        iterations: training iterations per epoch.
        pretrained: the node starts from given weights.
        noise: noise of the node's part of the run, where it adds some.
        labellings: how often received networks have time to label a training case, on average; None where none does.
    """

    seconds: float = Field(ge=0)
    num_training: int = Field(ge=1)
    num_validation: int = Field(ge=0)
    epochs: int = Field(ge=1)
    iterations: int = Field(ge=1)
    pretrained: bool = False
    noise: NoiseReport | None = None
    labellings: float | None = Field(default=None, ge=0, allow_inf_nan=False)
