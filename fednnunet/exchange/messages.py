"""The five messages of the protocol: their names, their fields, their limits.

A message is a JSON body that one of the models below validates, and for ``train`` and ``evaluate``
named arrays beside it (:mod:`fednnunet.exchange.arrays`). Nothing else travels: no image, no case name,
no path, and nothing that is unpickled or executed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fednnunet.errors import ProtocolError, first_problem

MAX_BODY_BYTES = 64 * 2**20
"""Largest JSON body: fingerprints list two triples per case, so this is > 100,000 cases."""

NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.'-]{0,63}$")]
ENSEMBLE = "ensemble"
"""Stands for a fold, where the models of several were averaged, and for a node, where those of all were."""
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Of a federation across machines; the same when an interrupted run goes on."""
LayerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
Fold = Annotated[int, Field(ge=0, le=4)] | Literal["all"]
"""nnU-Net's: a held-out fifth of the cases, or ``all`` to train on every case."""
ExchangeDtype = Literal["float32", "float16", "bfloat16"]
"""What the values of exchanged layers are rounded to while they travel."""
Salt = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 random bytes in hexadecimal, anew for each run."""
SaltedDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""HMAC-SHA256, keyed with the salt, of an image's decoded voxels; see :mod:`fednnunet.exchange.digests`."""
MAX_DIGESTS = 100_000
"""Of a node's cases; those of an external node are not counted before."""
MAX_DIMENSIONS = 8
MAX_LENGTH = 2**31
Shape = Annotated[list[Annotated[int, Field(ge=0, le=MAX_LENGTH)]], Field(max_length=MAX_DIMENSIONS)]
Axes = list[Annotated[int, Field(ge=0, le=2)]]


class Kind(StrEnum):
    """Message types, spelt as Flower's ``<category>.<action>``."""

    FINGERPRINT = "query.fingerprint"
    PLAN = "query.plan"
    PREPROCESS = "query.preprocess"
    TRAIN = "train"
    EVALUATE = "evaluate"


class Body(BaseModel):
    """Base of all bodies: unknown fields are refused, NaN and infinity too unless a field allows them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FingerprintRequest(Body):
    """Describe your dataset. Sent first; a run that has begun is answered the same way again.

    Attributes:
        tell: of the fingerprint: ``nothing``; the ``ranges`` of foreground intensities; the node's ``contribution`` to
            the federation's fingerprint; or nnU-Net's ``statistics`` of the node.
        total_cases: training cases of all nodes, for the contribution.
        bins: of every channel's histogram, for the contribution.
        run: id of the run, where the node is not started for it: one that is on another run begins this one.
        task: what the node is to do in it (:class:`~fednnunet.config.run.SharedRunConfig`).
        salt: tell digests of the images, keyed with it, where the node's own configuration allows that.
    """

    tell: Literal["nothing", "ranges", "contribution", "statistics"] = "nothing"
    total_cases: int | None = Field(default=None, ge=1)
    bins: dict[str, Any] | None = None
    run: RunId | None = None
    task: dict[str, Any] | None = None
    salt: Salt | None = None


class FingerprintReply(Body):
    """What a node tells of its data: counts, label names and what was asked of its fingerprint, never a case.

    Attributes:
        node: the node's name.
        version: of its ``fednnunet``.
        external: the node has no training cases, its data only serve for testing.
        num_training: number of training cases (all folds).
        configuration: nnU-Net's, that the node will train.
        channel_names: nnU-Net's ``channel_names``.
        labels: nnU-Net's ``labels`` (a list of values is a region).
        regions_class_order: nnU-Net's, for region-based training.
        file_ending: such as ``.nii.gz``.
        fingerprint: contribution or statistics; None where neither was asked for, and from an external node.
        intensity_ranges: channel to range of its foreground intensities, where asked for.
        resume_rounds: fold to finished rounds from whose checkpoint this node can go on.
        image_digests: salted, of its cases' images, sorted and each once; None where they were not asked for, or the
            node does not tell them.
    """

    node: NodeName
    version: str
    external: bool
    num_training: int = Field(ge=0)
    configuration: str
    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None
    file_ending: str
    fingerprint: dict[str, Any] | None = None
    intensity_ranges: dict[str, Any] | None = None
    resume_rounds: dict[Fold, list[int]] = {}
    image_digests: list[SaltedDigest] | None = Field(default=None, max_length=MAX_DIGESTS)

    @model_validator(mode="after")
    def _digests_are_of_cases(self) -> FingerprintReply:
        digests = self.image_digests or []
        if len(set(digests)) < len(digests):
            raise ValueError("image_digests: one is there twice")
        if not self.external and len(digests) > self.num_training:
            raise ValueError(f"image_digests: {len(digests)} of {self.num_training} cases")
        return self


class PlanRequest(Body):
    """Plan your network.

    Attributes:
        fingerprint: the federated fingerprint (FFE), or None to plan from the node's own.
        num_training: training cases that the batch-size cap counts; None for the node's own.
    """

    fingerprint: dict[str, Any] | None
    num_training: int | None = Field(default=None, ge=1)


class PlanReply(Body):
    """The node's plans and the layers they lead to.

    Attributes:
        plans: nnU-Net's plans of the node.
        layers: trainable tensors and buffers of the network, name to shape.
        num_parameters: number of values in ``layers``.
    """

    plans: dict[str, Any]
    layers: dict[LayerName, Shape]
    num_parameters: int = Field(ge=1)


class PreprocessRequest(Body):
    """Run nnU-Net's preprocessing for the plans made before, and build the trainer of the first fold.

    Attributes:
        fold: the first to train.
    """

    fold: Fold = 0


class PreprocessReply(Body):
    """Preprocessing is done.

    Attributes:
        seconds: it took.
        num_training: training cases of the fold.
        num_validation: held-out cases of the fold.
        epochs: that the node's trainer makes.
        iterations: training iterations per epoch.
        pretrained: the node starts from given weights.
    """

    seconds: float = Field(ge=0)
    num_training: int = Field(ge=1)
    num_validation: int = Field(ge=0)
    epochs: int = Field(ge=1)
    iterations: int = Field(ge=1)
    pretrained: bool = False


class TrainRequest(Body):
    """Load the arrays beside this body, train, send the layers listed.

    Attributes:
        fold: to train; folds come one after another.
        server_round: 1, 2, …; 0 asks for the initial state without training.
        trained: the last round that this node trained in, 0 for none: what a worker that has just started goes on
            from; ``server_round`` itself asks for that round's reply again.
        epochs: of a round; fewer where the trainer has fewer left. Epochs of rounds the node was not in count as over.
        layers: names of the layers to send back; empty when nothing is exchanged.
        dtype: what to send them as; of layers of integers as they are.
        proximal_mu: weight of the pull towards the arrays beside this body (FedProx); 0 for none.
    """

    fold: Fold = 0
    server_round: int = Field(ge=0)
    trained: int = Field(default=0, ge=0)
    epochs: int = Field(default=1, ge=1)
    layers: list[LayerName]
    dtype: ExchangeDtype = "float32"
    proximal_mu: float = Field(default=0.0, ge=0)


class TrainReply(Body):
    """Figures of a round's last epoch, nnU-Net's own.

    Attributes:
        fold: the request's.
        server_round: the request's.
        num_examples: training cases of this fold.
        train_loss: mean over the epoch's iterations.
        val_loss: mean over the validation iterations.
        pseudo_dice: nnU-Net's online mean foreground Dice; None when no label was seen.
        learning_rate: of this epoch.
        seconds_train: training and validation of the round's epochs.
        seconds_exchange: loading and handing over of arrays at the node.
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


class Model(Body):
    """A node's final model on its way to the cases of another; its layers are beside it.

    Attributes:
        node: whose it is.
        fold: that it was trained on.
        plans: nnU-Net's plans of its network.
        mirror_axes: axes of test-time mirroring; None without mirroring.
    """

    node: NodeName
    fold: Fold
    plans: dict[str, Any]
    mirror_axes: Axes | None


class EvaluateRequest(Body):
    """Load the last aggregate, write the final checkpoint, score the fold's held-out cases; or one of the following.

    Attributes:
        fold: whose held-out cases.
        server_round: number of rounds trained.
        trained: the last of them that this node trained in; see :class:`TrainRequest`.
        layers: send these of the fold's final checkpoint, instead.
        keep: another node's model, which comes beside this body, to score with later; do just that.
        score: score with kept models, and forget them: node to the folds whose softmax outputs are averaged. An
            external node scores all of its cases, another those that ``fold`` holds out.
    """

    fold: Fold = 0
    server_round: int = Field(default=0, ge=0)
    trained: int = Field(default=0, ge=0)
    layers: list[LayerName] = []
    keep: Model | None = None
    score: dict[NodeName, Annotated[list[Fold], Field(min_length=1)]] = {}

    @property
    def of_own_model(self) -> bool:
        """Whether the node is to finish the fold and score its own model."""
        return not self.layers and self.keep is None and not self.score


class CaseScore(Body):
    """Scores of one label in one case.

    Attributes:
        centre: the centre the case is of (the node, or one of the pooled centres).
        case: anonymous number of the case at its centre, the same in every strategy and run.
        label: label or region name.
        model: node whose model it was, or ``ensemble`` of all that scored; None for the node's own.
        dsc: Dice similarity coefficient in [0, 1]; None where it is not defined.
        hd95: 95th percentile of the Hausdorff distance (mm or pixels); None where it is not defined.
        surface_dsc: share of both surfaces within a tolerance of the other, in [0, 1].
        volume_error: volume segmented too much (negative: too little), as a fraction of the reference's; None without.
        empty: which of the two masks is.
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


class EvaluateReply(Body):
    """Scores of all held-out cases; none where a model is sent or kept.

    Attributes:
        cases: one row per case, label and model.
        mirror_axes: axes of test-time mirroring of the final model, where it was asked for; None without mirroring.
        seconds: that it took.
    """

    cases: list[CaseScore] = []
    mirror_axes: Axes | None = None
    seconds: float = Field(ge=0)


class Failure(Body):
    """A node's answer when it cannot do what was asked.

    Attributes:
        reason: one line for the operator: who, what, what to do.
        error: ``data`` and ``config`` are the user's to fix; ``internal`` is a bug; ``protocol`` a bad message;
            ``unavailable`` passes: it can be asked again.
    """

    reason: str
    error: Literal["data", "config", "protocol", "internal", "unavailable"]


REQUESTS: dict[Kind, type[Body]] = {
    Kind.FINGERPRINT: FingerprintRequest,
    Kind.PLAN: PlanRequest,
    Kind.PREPROCESS: PreprocessRequest,
    Kind.TRAIN: TrainRequest,
    Kind.EVALUATE: EvaluateRequest,
}
REPLIES: dict[Kind, type[Body]] = {
    Kind.FINGERPRINT: FingerprintReply,
    Kind.PLAN: PlanReply,
    Kind.PREPROCESS: PreprocessReply,
    Kind.TRAIN: TrainReply,
    Kind.EVALUATE: EvaluateReply,
}

B = TypeVar("B", bound=Body)


def parse_body(model: type[B], text: str | bytes, sender: str) -> B:
    """Validate the JSON ``text`` of ``sender`` as ``model``.

    Raises:
        ProtocolError: too large, not JSON, or not of the schema; names sender and field.
    """
    if len(text) > MAX_BODY_BYTES:
        raise ProtocolError(f"{sender} sent a body of {len(text)} bytes; at most {MAX_BODY_BYTES} are taken")
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ProtocolError(f"{sender} sent a malformed {model.__name__}: {first_problem(error, 'body')}") from None
