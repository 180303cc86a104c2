"""The messages of the protocol: their names, and the model that validates each.

Bodies are defined by subject: before training (:mod:`~fednnunet.exchange.preparation_messages`), in its rounds
(:mod:`~fednnunet.exchange.training_messages`), after it (:mod:`~fednnunet.exchange.evaluation_messages`), of fields
with limits (:mod:`~fednnunet.exchange.message_fields`). All others import them from here.

A message is a JSON body that one of these models validates; beside some bodies travel named arrays
(:mod:`fednnunet.exchange.arrays`): layers of a network. Nothing else travels: no image, no case name, no path, and
nothing that is unpickled or executed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeVar

from pydantic import ValidationError

from fednnunet.errors import ProtocolError, first_problem
from fednnunet.exchange.evaluation_messages import (
    MIN_CASES,
    CaseScore,
    EvaluateReply,
    EvaluateRequest,
    KeepModelReply,
    MeanScore,
    Model,
    Score,
    ScoreModelsRequest,
    SendModelReply,
    SendModelRequest,
)
from fednnunet.exchange.message_fields import (
    ENSEMBLE,
    MAX_CHANNELS,
    MAX_FOLDS,
    MAX_LABELS,
    MAX_LAYERS,
    MAX_NAME,
    NODE_NAME,
    Body,
    ExchangeDtype,
    Fold,
    LayerName,
    NodeName,
    RunId,
    SignedKey,
    TaskName,
)
from fednnunet.exchange.preparation_messages import (
    MAX_DIMENSIONS,
    MAX_FINE_TUNE_EPOCHS,
    MAX_LENGTH,
    FingerprintReply,
    FingerprintRequest,
    NoiseReport,
    PersonalTraining,
    PlanReply,
    PlanRequest,
    PreprocessReply,
    PreprocessRequest,
    Shape,
)
from fednnunet.exchange.training_messages import (
    LayerClass,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)

__all__ = [
    "ENSEMBLE",
    "MAX_BODY_BYTES",
    "MAX_CHANNELS",
    "MAX_DIMENSIONS",
    "MAX_FINE_TUNE_EPOCHS",
    "MAX_FOLDS",
    "MAX_LABELS",
    "MAX_LAYERS",
    "MAX_LENGTH",
    "MAX_NAME",
    "MIN_CASES",
    "NODE_NAME",
    "REPLIES",
    "REQUESTS",
    "Body",
    "CaseScore",
    "EvaluateReply",
    "EvaluateRequest",
    "ExchangeDtype",
    "Failure",
    "FingerprintReply",
    "FingerprintRequest",
    "Fold",
    "KeepModelReply",
    "Kind",
    "LayerClass",
    "LayerName",
    "MeanScore",
    "Model",
    "NodeName",
    "NoiseReport",
    "PersonalTraining",
    "PlanReply",
    "PlanRequest",
    "PreprocessReply",
    "PreprocessRequest",
    "RunId",
    "Score",
    "ScoreModelsRequest",
    "SendModelReply",
    "SendModelRequest",
    "Shape",
    "SignedKey",
    "TaskName",
    "TrainReply",
    "TrainRequest",
    "UnmaskReply",
    "UnmaskRequest",
    "parse_body",
]

MAX_BODY_BYTES = 64 * 2**20
"""Largest JSON body: fingerprints list two triples per case, so this is more than 100,000 cases."""


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
