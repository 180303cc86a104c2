"""The card that goes with a model: what it is, what it was trained on, how well it does, what it is not for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.errors import DataError, first_problem, one_line
from fednnunet.models.json_file import parse_json

Text = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

RESEARCH_ONLY = (
    "For research. It is no medical device: nobody has assessed it for diagnosis or treatment, and a physician must "
    "look at every segmentation."
)
NOT_ELSEWHERE = (
    "How well it does on images of other centres, scanners or protocols is not known before it is tried there."
)
NO_EXTERNAL = "It was scored on held-out cases of the centres that trained it, and at no other centre."
NO_SCORES = "No scores are known of it, or only of fewer than five cases of a centre, which are not told."
FOLDS_APART = (
    "Scores of training centres are of each fold's network on the cases that this fold held out. The average of the "
    "folds' networks, which is used by default, was trained on all of these cases: it has no such score."
)
LEARNT_FROM_CASES = (
    "Weights tell something of the cases that they were trained on, unless noise was added in training. Hand them over "
    "as the agreement between the centres allows."
)


DERIVED = (RESEARCH_ONLY, NOT_ELSEWHERE, NO_EXTERNAL, NO_SCORES, FOLDS_APART, LEARNT_FROM_CASES)
"""Limits that every card says where they hold."""


class _Card(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Estimate(_Card):
    """A mean over cases and its 95 % bootstrap interval; without bounds where there are too few cases, or only a mean.

    Attributes:
        mean: over cases in which it is defined.
        low: lower bound.
        high: upper bound.
        cases: number of these cases.
    """

    mean: Number
    low: Number | None = None
    high: Number | None = None
    cases: Count

    def __str__(self) -> str:
        """As in a table: mean and interval."""
        decimals = 3 if abs(self.mean) < 2 else 1
        interval = (
            "" if self.low is None or self.high is None else f" ({self.low:.{decimals}f} to {self.high:.{decimals}f})"
        )
        return f"{self.mean:.{decimals}f}{interval}"


class CentreScore(_Card):
    """Scores of the model at a centre.

    Attributes:
        centre: its name, or a number in place of it.
        role: whether it trained.
        label: label or region; empty for the mean over all, case by case.
        dsc: Dice similarity coefficient.
        hd95: 95th percentile of the Hausdorff distance, in the card's unit; None where defined in too few cases.
    """

    centre: Text
    role: Literal["training", "external"]
    label: Text
    dsc: Estimate | None
    hd95: Estimate | None


class RunFacts(_Card):
    """What a run knows of its models; nothing is known of models that nnU-Net trained outside of one.

    Attributes:
        strategy: its name.
        trained_for: all of a federation's nodes, one of them, or the centres' pooled cases.
        centres: number of centres that trained.
        names: their names, where they are to be known.
        cases: cases, of which each fold holds some out: of the node where it trained alone, else of all centres.
        cases_of_centres: the same by centre, or by a number in place of its name.
        rounds: of a fold.
        iterations: of an epoch.
        distance_unit: of HD95.
        scores: by centre and label.
        privacy: what the run told of single nodes and cases, as in its report.
    """

    strategy: Text | None = None
    trained_for: Literal["federation", "node", "pooled cases"] | None = None
    centres: Count | None = None
    names: list[Text] | None = None
    cases: Count | None = None
    cases_of_centres: dict[Text, Count] = {}
    rounds: Count | None = None
    iterations: Count | None = None
    distance_unit: Text = "mm"
    scores: list[CentreScore] = []
    privacy: list[Text] = []

    def without_names(self) -> Self:
        """The same with numbers in place of the centres' names, where it has them."""
        if self.names is None:
            return self
        external = dict.fromkeys(score.centre for score in self.scores if score.role == "external")
        shown = {name: f"centre {number}" for number, name in enumerate(self.names, 1)}
        shown |= {name: f"external centre {number}" for number, name in enumerate(external, 1)}

        def replaced(text: str) -> str:
            for name in sorted(shown, key=len, reverse=True):
                text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", shown[name], text)
            return text

        return self.model_copy(
            update={
                "names": None,
                "cases_of_centres": {shown.get(name, name): cases for name, cases in self.cases_of_centres.items()},
                "scores": [
                    score.model_copy(update={"centre": shown.get(score.centre, score.centre)}) for score in self.scores
                ],
                "privacy": [replaced(text) for text in self.privacy],
            }
        )


class NetworkFacts(_Card):
    """A network of the card: one configuration.

    Attributes:
        folder: its folder in the zip.
        configuration: nnU-Net's.
        trainer: name of nnU-Net's class.
        plans: name of the plans.
        folds: that were trained.
        channels: names, in the order of the files of a case.
        labels: as in ``dataset.json``.
        spacing: that images are resampled to, in mm (voxels of natural images), in the order of the network's axes.
        patch_size: in voxels.
        batch_size: of training.
        stages: of the network.
        parameters: numbers that were trained.
        previous_stage: configuration whose segmentations it also takes.
        postprocessing: label values of which only the largest component stays, step by step.
    """

    folder: Text
    configuration: Text
    trainer: Text
    plans: Text
    folds: list[Text]
    channels: list[Text]
    labels: dict[Text, Any]
    spacing: list[Number]
    patch_size: list[Count]
    batch_size: Count
    stages: Count
    parameters: Count
    previous_stage: Text | None = None
    postprocessing: list[list[int]] = []

    def is_stage_before(self, other: NetworkFacts) -> bool:
        """Whether the other one takes what this one segments."""
        return self.configuration == other.previous_stage and self.plans == other.plans

    def command(self, dataset: str, output: str) -> str:
        """nnU-Net's command that segments with it."""
        return (
            f"nnUNetv2_predict -i IMAGES -o {output} -d {one_line(dataset)} -tr {one_line(self.trainer)} "
            f"-p {one_line(self.plans)} -c {one_line(self.configuration)} -f {one_line(' '.join(self.folds))}"
        )


class ModelCard(_Card):
    """The card.

    Attributes:
        card: version of this form.
        name: of the model, nnU-Net's dataset name.
        licence: as who hands it over says; None if not.
        run: what its run knows.
        networks: by configuration.
        averaged: folders of the networks whose softmax outputs are averaged; none where one segments.
        postprocessing: of their mean: label values of which only the largest component stays, step by step.
        limits: of use, in sentences.
        versions: of the packages that made the file.
        files: path in the zip to SHA-256, of every file but the card.
    """

    card: Literal[1] = 1
    name: Text
    licence: Text | None
    run: RunFacts
    networks: list[NetworkFacts] = Field(min_length=1)
    averaged: list[Text] = []
    postprocessing: list[list[int]] = []
    limits: list[Text]
    versions: dict[Text, Text]
    files: dict[Text, Digest] = Field(min_length=1)

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """A card from outside.

        Raises:
            DataError: it is none; names the field.
        """
        try:
            return cls.model_validate(parse_json(content, where))
        except ValidationError as error:
            raise DataError(f"{where}: {first_problem(error, 'the card')}") from None

    def as_json(self) -> str:
        """What :meth:`parse` reads."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def limits_of(facts: RunFacts, folds: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """Limits of use that follow from what is known, and those that are given."""
    limits = [RESEARCH_ONLY, *more]
    if not facts.scores:
        limits.append(NO_SCORES)
    elif all(score.role == "training" for score in facts.scores):
        limits.append(NO_EXTERNAL)
    if len(folds) > 1 and any(score.role == "training" for score in facts.scores):
        limits.append(FOLDS_APART)
    return [*limits, NOT_ELSEWHERE, LEARNT_FROM_CASES]


def limits_given(limits: Sequence[str]) -> list[str]:
    """Of a card's limits those that were given, and do not follow from what is known."""
    return [limit for limit in limits if limit not in DERIVED]
