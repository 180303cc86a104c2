"""Messages after training: a fold's final models and their scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from fednnunet.exchange.message_fields import (
    MAX_CHANNELS,
    Axes,
    Body,
    ExchangeDtype,
    Fold,
    LayerName,
    NodeName,
    References,
    TaskName,
    UnionChannels,
    UnionLabels,
    distinct,
)

MIN_CASES = 5
"""Fewest cases that a mean of scores is over, where a node tells no more than means."""


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
    references: References = Field(default={})


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
    unlearnt: Annotated[list[TaskName], Field(max_length=MAX_CHANNELS), AfterValidator(distinct)] = Field(default=[])


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

    cases: list[ToldScore] = Field(default=[])
    personal: list[ToldScore] = Field(default=[])
    seconds: float = Field(ge=0)
