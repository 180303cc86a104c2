"""The messages of the protocol: their names, fields and limits.

A message is a JSON body that one of the models below validates; beside some bodies travel named arrays
(:mod:`fednnunet.exchange.arrays`): layers of a network. Nothing else travels: no image, no case name, no path, and
nothing that is unpickled or executed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from fednnunet.errors import ProtocolError, first_problem
from fednnunet.exchange.data_notes import DataNote, NoteKind
from fednnunet.exchange.quantities import Counts, Questions

MAX_BODY_BYTES = 64 * 2**20
"""Largest JSON body: fingerprints list two triples per case, so this is more than 100,000 cases."""

MAX_LAYERS = 20_000
"""Most layers of a network."""

NODE_NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.'-]{0,63}$"
NodeName = Annotated[str, Field(pattern=NODE_NAME)]
ENSEMBLE = "ensemble"
"""Takes the place of the fold where models of several were averaged, and of the node where those of all were."""
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Id of a run across machines; the same when the run is resumed."""
LayerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
MAX_FOLDS = 100
"""Most folds that a centre's own splits may have."""
Fold = Annotated[int, Field(ge=0, lt=MAX_FOLDS)] | Literal["all"]
"""nnU-Net's: the number of a split, 0 to 4 without own ones, or ``all`` to train on every case."""
ExchangeDtype = Literal["float32", "float16", "bfloat16", "int8", "int4"]
"""Data type that exchanged layers are rounded to while they travel; of integers, that their steps are quantised to."""
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes in hexadecimal."""
Digest = Hex32
"""SHA-256 of a layer's values, :func:`fednnunet.exchange.quantisation.digest`."""
References = Annotated[dict[LayerName, Digest], Field(max_length=MAX_LAYERS)]
"""Layers that travel as steps, to the digest of what each step starts from."""
Salt = Hex32
"""Random, drawn for each run."""
SaltedDigest = Hex32
"""HMAC-SHA256 of an image's decoded voxels, keyed with the salt; see :mod:`fednnunet.exchange.digests`."""
MAX_DIGESTS = 100_000
"""Most digests of one node: the number of an external node's cases is not known before."""
MIN_CASES = 5
"""Fewest cases that a mean of scores is over, where a node tells no more than means."""
MAX_CENTRES = 1000
"""Most centres whose cases one node pools."""
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,256}$")]
"""Up to 256 bytes in hexadecimal."""
Sealed = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=2**20)]
"""Encrypted bytes in base 64."""
MAX_CLASSES = 64
"""Most classes of layers: sets of nodes that have a layer in common."""
MAX_CHANNELS = 64
"""Most channels of all nodes of a federation."""
MAX_NAME = 128
"""Most characters of the name of a label or channel that nodes are told."""
MAX_LABELS = 254
"""Highest value of a label: label maps have one byte a voxel, as nnU-Net stores them."""
MAX_FINE_TUNE_EPOCHS = 100_000
"""Most epochs that a server may ask a node to train on alone."""
MAX_DIMENSIONS = 8
MAX_LENGTH = 2**31
Shape = Annotated[list[Annotated[int, Field(ge=0, le=MAX_LENGTH)]], Field(max_length=MAX_DIMENSIONS)]
Axes = list[Annotated[int, Field(ge=0, le=2)]]


class Kind(StrEnum):
    """Message types, in Flower's form ``<category>.<action>``."""

    FINGERPRINT = "query.fingerprint"
    PLAN = "query.plan"
    PREPROCESS = "query.preprocess"
    TRAIN = "train"
    UNMASK = "train.unmask"
    EVALUATE = "evaluate"
    SEND_MODEL = "evaluate.send_model"
    KEEP_MODEL = "evaluate.keep_model"
    SCORE_MODELS = "evaluate.score_models"


class Body(BaseModel):
    """Base of all bodies: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SignedKey(Body):
    """A node's public key for the secure sums of a run; see :mod:`fednnunet.privacy.identity`.

    Attributes:
        node: the node's name.
        public: X25519 public key.
        signature: of run, node and key, by the key in the certificate.
        certificate: the node's, from the federation's authority; PEM.
    """

    node: NodeName
    public: Hex32
    signature: Hex
    certificate: Annotated[str, Field(max_length=8192)]


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
    keys: Annotated[list[SignedKey], Field(max_length=1000)] = []
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
    resume_rounds: dict[Fold, list[int]] = {}
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


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("one is there twice")
    if not all(name.isprintable() for name in names):
        raise ValueError("one is not printable")
    return names


TaskName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
"""Name of a label or channel."""
UnionLabels = Annotated[
    dict[TaskName, Annotated[int, Field(ge=0, le=MAX_LABELS)]],
    Field(min_length=2, max_length=MAX_LABELS + 1),
]
"""Every label of a federation: name to value."""
UnionChannels = Annotated[
    list[TaskName],
    Field(min_length=2, max_length=MAX_CHANNELS),
    AfterValidator(_distinct),
]
"""Every channel of a federation, by name, in the order of the network's input."""


class PlanRequest(Body):
    """Plan your network.

    Attributes:
        fingerprint: the federated fingerprint (FFE); None to plan from the node's own.
        num_training: number of training cases that the batch-size cap counts; None for the node's own.
        labels: every label of the federation, name to value, where the network segments them all: background 0, the
            others by name, ``ignore`` last; None where the node's own labels are all.
        channels: every channel of the federation, by name, in the order of the network's input; None where all nodes
            have the same ones, in the same order.
    """

    fingerprint: dict[str, Any] | None
    num_training: int | None = Field(default=None, ge=1)
    labels: UnionLabels | None = None
    channels: UnionChannels | None = None

    @model_validator(mode="after")
    def _channels_are_the_nodes_own(self) -> PlanRequest:
        if self.channels is not None and self.fingerprint is not None:
            raise ValueError("channels: a federated fingerprint is of channels that all nodes have")
        return self


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
    buffers: list[LayerName] = []
    num_parameters: int = Field(ge=1)
    heads: list[LayerName] = []

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
    keys: Annotated[list[SignedKey], Field(max_length=1000)] = []


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
    """

    seconds: float = Field(ge=0)
    num_training: int = Field(ge=1)
    num_validation: int = Field(ge=0)
    epochs: int = Field(ge=1)
    iterations: int = Field(ge=1)
    pretrained: bool = False
    noise: NoiseReport | None = None


class LayerClass(Body):
    """Layers that the same nodes have: they are summed together (:mod:`fednnunet.privacy.secure_sum`).

    Attributes:
        members: nodes of the round that have them, sorted.
        layers: their names at this node, in the same order at every node; none at a node that is no member.
    """

    members: Annotated[list[NodeName], Field(min_length=1, max_length=1000)]
    layers: list[LayerName]


class TrainRequest(Body):
    """Load the arrays beside this body, train, send the layers listed.

    Attributes:
        fold: fold to train; folds come one after another.
        server_round: number of the round, from 1; 0 requests the initial state without training.
        trained: the last round that this node trained in, 0 for none: a worker that has just started resumes from it;
            ``server_round`` itself requests that round's reply again.
        epochs: epochs of a round; fewer where the trainer has fewer left. Epochs of rounds that the node was not in
            count as finished.
        layers: names of the layers to send back; empty when nothing is exchanged.
        dtype: data type to send them in; buffers, and layers of integers, are sent as they are. With ``int8`` or
            ``int4`` a layer is sent as a step from what is beside this body of it, decoded.
        references: layers beside this body that are steps, and what they start from.
        proximal_mu: weight of FedProx's proximal term, towards the arrays beside this body; 0 for none.
        classes: send the layers masked, for secure sums by class; the first class also sums the round's figures.
        most_cases: a masked layer is weighted by the node's training cases of the fold, as a fraction of these; None
            for equal weights.
    """

    fold: Fold = 0
    server_round: int = Field(ge=0)
    trained: int = Field(default=0, ge=0)
    epochs: int = Field(default=1, ge=1)
    layers: list[LayerName]
    dtype: ExchangeDtype = "float32"
    references: References = {}
    proximal_mu: float = Field(default=0.0, ge=0)
    classes: Annotated[list[LayerClass], Field(max_length=MAX_CLASSES)] = []
    most_cases: int | None = Field(default=None, ge=1)


class TrainReply(Body):
    """Figures of a round's last epoch, nnU-Net's own.

    Attributes:
        fold: fold of the request.
        server_round: round of the request.
        num_examples: number of training cases of this fold.
        train_loss: mean over the epoch's training iterations.
        val_loss: mean over the epoch's validation iterations.
        pseudo_dice: nnU-Net's online mean foreground Dice; None when no label was seen.
        learning_rate: learning rate of the epoch.
        seconds_train: seconds of training and validation in the round's epochs.
        seconds_exchange: seconds of loading and sending arrays at the node.
        gpu_memory_gib: most GPU memory that the round took, GiB; None on other devices.
        shares: class by class, member to this node's shares for it, which it alone can read.
    """

    fold: Fold = 0
    server_round: int
    num_examples: int = Field(ge=1)
    train_loss: float | None = None
    val_loss: float | None = None
    pseudo_dice: float | None = None
    learning_rate: float | None = None
    seconds_train: float = Field(default=0.0, ge=0)
    seconds_exchange: float = Field(default=0.0, ge=0)
    gpu_memory_gib: float | None = Field(default=None, ge=0)
    shares: Annotated[list[dict[NodeName, Sealed]], Field(max_length=MAX_CLASSES)] = []


class UnmaskRequest(Body):
    """Help to open the sums of a round; answered for one set of arrivals in a round.

    Attributes:
        fold: fold of the round.
        server_round: the round.
        arrived: class by class, members whose layers are in the sum; empty for a class that this node is not in.
        shares: class by class, arrival to its shares for this node.
    """

    fold: Fold
    server_round: int = Field(ge=1)
    arrived: Annotated[list[list[NodeName]], Field(max_length=MAX_CLASSES)]
    shares: Annotated[list[dict[NodeName, Sealed]], Field(max_length=MAX_CLASSES)]


class UnmaskReply(Body):
    """What has to be subtracted from the sums.

    Attributes:
        shares: class by class, arrival to shares of its own seed, and of those with members that are missing, by name.
    """

    shares: Annotated[list[dict[NodeName, dict[NodeName, Hex]]], Field(max_length=MAX_CLASSES)]


class EvaluateRequest(Body):
    """Load the last aggregate, write the final checkpoint, score the fold's held-out cases.

    Attributes:
        fold: fold whose held-out cases are scored.
        server_round: number of rounds trained.
        trained: the last of them that this node trained in; see :class:`TrainRequest`.
        dtype: data type that layers travel in.
        references: layers beside this body that are steps, and what they start from.
    """

    fold: Fold = 0
    server_round: int = Field(default=0, ge=0)
    trained: int = Field(default=0, ge=0)
    dtype: ExchangeDtype = "float32"
    references: References = {}


class SendModelRequest(Body):
    """Send the final checkpoint of a fold.

    Attributes:
        fold: the fold.
        layers: names of the layers to send; none where the server has them, as the averages that they are.
    """

    fold: Fold
    layers: list[LayerName]


class SendModelReply(Body):
    """A final model; its layers are beside this body.

    Attributes:
        mirror_axes: axes of test-time mirroring; None without mirroring.
        seconds: duration in seconds.
    """

    mirror_axes: Axes | None
    seconds: float = Field(ge=0)


class Model(Body):
    """Another node's final model, to keep and score with later; its layers are beside this body.

    Attributes:
        node: node that trained it.
        fold: fold that it was trained on.
        plans: nnU-Net plans of its network.
        mirror_axes: axes of test-time mirroring; None without mirroring.
        unlearnt: names of channels that its network takes, and has not learnt to use: they are zeros to it.
    """

    node: NodeName
    fold: Fold
    plans: dict[str, Any]
    mirror_axes: Axes | None
    unlearnt: Annotated[list[TaskName], Field(max_length=MAX_CHANNELS), AfterValidator(_distinct)] = []


class KeepModelReply(Body):
    """The model is kept.

    Attributes:
        seconds: duration in seconds.
    """

    seconds: float = Field(ge=0)


class ScoreModelsRequest(Body):
    """Score with the models that are kept, and remove them.

    An external node scores all of its cases, another those that the fold holds out.

    Attributes:
        fold: fold whose held-out cases are scored.
        models: node to the folds whose softmax outputs are averaged.
        labels: as in :class:`PlanRequest`, for nodes that plan nothing.
        channels: as there.
    """

    fold: Fold
    labels: UnionLabels | None = None
    channels: UnionChannels | None = None
    models: Annotated[dict[NodeName, Annotated[list[Fold], Field(min_length=1)]], Field(min_length=1)]


class CaseScore(Body):
    """Scores of one label in one case.

    Attributes:
        centre: the case's centre (the node, or one of the pooled centres).
        case: anonymous number of the case at its centre, the same in every strategy and run.
        label: name of the label or region.
        model: node whose model was scored, or ``ensemble`` of all of them; None for the node's own.
        dsc: Dice similarity coefficient in [0, 1]; None where it is undefined.
        hd95: 95th percentile of the Hausdorff distance (mm or pixels); None where it is undefined.
        surface_dsc: fraction of both surfaces within a tolerance of the other, in [0, 1].
        volume_error: volume segmented too much (negative: too little), as a fraction of the reference volume; None
            without a reference.
        empty: which of the two masks is empty.
    """

    centre: NodeName
    case: int = Field(ge=0)
    label: str
    model: NodeName | None = None
    dsc: float | None
    hd95: float | None
    surface_dsc: float | None = None
    volume_error: float | None = None
    empty: Literal["prediction", "reference", "both"] | None = None


class MeanScore(Body):
    """Means of scores over a centre's cases, where the node tells no more.

    Each mean is over at least :data:`MIN_CASES` cases in which the score is defined; None where they are fewer.

    Attributes:
        centre: the cases' centre.
        label: name of the label or region; None for the mean over labels of each case.
        model: as in :class:`CaseScore`.
        num_cases: number of cases.
        dsc: as there.
        hd95: as there.
        surface_dsc: as there.
        volume_error: mean of the sizes, so that too much and too little do not cancel out.
    """

    centre: NodeName
    label: str | None = None
    model: NodeName | None = None
    num_cases: int = Field(ge=MIN_CASES)
    dsc: float | None = None
    hd95: float | None = None
    surface_dsc: float | None = None
    volume_error: float | None = None


Score: TypeAlias = CaseScore | MeanScore
"""What a node tells of its scores."""


def _kind_of_score(score: Any) -> str:
    is_mean = "num_cases" in score if isinstance(score, dict) else isinstance(score, MeanScore)
    return "mean" if is_mean else "case"


ToldScore = Annotated[
    Annotated[CaseScore, Tag("case")] | Annotated[MeanScore, Tag("mean")], Discriminator(_kind_of_score)
]


class EvaluateReply(Body):
    """Scores of the node's final model or of those that it kept.

    Attributes:
        cases: one row per case, label and model; means over cases, or nothing, where the node's limits say so.
        personal: the same of the model that is the node's own, where the run gives it one.
        seconds: duration in seconds.
    """

    cases: list[ToldScore] = []
    personal: list[ToldScore] = []
    seconds: float = Field(ge=0)


class Failure(Body):
    """A node's reply when it cannot do what was requested.

    Attributes:
        reason: one line for the operator: which node, what failed, what to do.
        error: ``data`` and ``config`` are the user's to fix; ``internal`` is a bug; ``protocol`` a malformed message;
            ``unavailable`` passes: the request can be sent again; ``reference``: so it can, with whole layers.
    """

    reason: str
    error: Literal["data", "config", "protocol", "internal", "unavailable", "reference"]


REQUESTS: dict[Kind, type[Body]] = {
    Kind.FINGERPRINT: FingerprintRequest,
    Kind.PLAN: PlanRequest,
    Kind.PREPROCESS: PreprocessRequest,
    Kind.TRAIN: TrainRequest,
    Kind.UNMASK: UnmaskRequest,
    Kind.EVALUATE: EvaluateRequest,
    Kind.SEND_MODEL: SendModelRequest,
    Kind.KEEP_MODEL: Model,
    Kind.SCORE_MODELS: ScoreModelsRequest,
}
REPLIES: dict[Kind, type[Body]] = {
    Kind.FINGERPRINT: FingerprintReply,
    Kind.PLAN: PlanReply,
    Kind.PREPROCESS: PreprocessReply,
    Kind.TRAIN: TrainReply,
    Kind.UNMASK: UnmaskReply,
    Kind.EVALUATE: EvaluateReply,
    Kind.SEND_MODEL: SendModelReply,
    Kind.KEEP_MODEL: KeepModelReply,
    Kind.SCORE_MODELS: EvaluateReply,
}

B = TypeVar("B", bound=Body)


def parse_body(model: type[B], text: str | bytes, sender: str) -> B:
    """Parse the JSON ``text`` of ``sender`` as ``model``.

    Raises:
        ProtocolError: too large, not JSON, or not of the schema; names sender and field.
    """
    if len(text) > MAX_BODY_BYTES:
        raise ProtocolError(f"{sender} sent a body of {len(text)} bytes; at most {MAX_BODY_BYTES} are taken")
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ProtocolError(f"{sender} sent a malformed {model.__name__}: {first_problem(error, 'body')}") from None
