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


class ModelCard(_Card):
    """The card.

    Attributes:
        card: version of this form.
        name: of the model, nnU-Net's dataset name.
        licence: as who hands it over says; None if not.
        run: what its run knows.
        networks: by configuration.
        limits: of use, in sentences.
        versions: of the packages that made the file.
        files: path in the zip to SHA-256, of every file but the card.
    """

    card: Literal[1] = 1
    name: Text
    licence: Text | None
    run: RunFacts
    networks: list[NetworkFacts] = Field(min_length=1)
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

    def as_markdown(self) -> str:
        """The card for people."""
        return "\n".join(
            [f"# {_cell(self.name)}", "", *self._training(), *self._networks(), *self._scores(), *self._end()]
        )

    def _training(self) -> list[str]:
        run = self.run
        rows = [
            ("licence", self.licence or "not stated: ask who gave you this file"),
            ("trained for", run.trained_for),
            ("strategy", run.strategy),
            ("centres that trained", ", ".join(run.names) if run.names else run.centres),
            ("cases, of which each fold holds some out", run.cases),
            ("rounds per fold", run.rounds),
            ("iterations per epoch", run.iterations),
        ]
        known = [(name, value) for name, value in rows if value is not None]
        return _table(("", ""), [(name, _cell(value)) for name, value in known])

    def _networks(self) -> list[str]:
        lines = ["## Networks", ""]
        columns = ("configuration", "folds", "spacing", "patch", "batch", "stages", "parameters", "trainer")
        lines += _table(
            columns,
            [
                tuple(
                    map(
                        _cell,
                        (
                            network.configuration,
                            ", ".join(network.folds),
                            " x ".join(f"{value:g}" for value in network.spacing),
                            " x ".join(map(str, network.patch_size)),
                            network.batch_size,
                            network.stages,
                            network.parameters,
                            network.trainer,
                        ),
                    )
                )
                for network in self.networks
            ],
        )
        first = self.networks[0]
        lines += [
            f"Input, one file per channel in this order: {_cell(', '.join(first.channels))}.",
            "",
            f"Output: {_cell(', '.join(f'{value} {name}' for name, value in first.labels.items()))}.",
            "",
        ]
        for network in self.networks:
            if network.postprocessing:
                steps = "; ".join(", ".join(map(str, step)) for step in network.postprocessing)
                lines += [f"Of {network.configuration}, only the largest component stays of the labels {steps}.", ""]
            if network.previous_stage:
                lines += [f"{network.configuration} also takes segmentations of {network.previous_stage}.", ""]
        return lines

    def _scores(self) -> list[str]:
        if not self.run.scores:
            return []
        rows = [
            (
                _cell(score.centre),
                score.role,
                _cell(score.label or "mean over labels"),
                str(score.dsc.cases if score.dsc else 0),
                str(score.dsc or "–"),
                _of_defined_cases(score),
            )
            for score in self.run.scores
        ]
        return [
            "## Scores on cases that it was not trained on",
            "",
            *_table(("centre", "", "label", "cases", "DSC", f"HD95 ({_cell(self.run.distance_unit)})"), rows),
            "Means over five cases or more, with 95 % bootstrap intervals over them. HD95 is undefined where a mask is "
            "empty: in brackets the number of cases in which it is not."
            + " They are of segmentations before post-processing."
            * any(one.postprocessing for one in self.networks),
            "",
        ]

    def _end(self) -> list[str]:
        lines = ["## Limits of use", "", *(f"* {one_line(limit)}" for limit in self.limits), ""]
        if self.run.privacy:
            lines += ["## Privacy in training", "", *(f"* {one_line(told)}" for told in self.run.privacy), ""]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines += ["## Files", "", f"Made with {_cell(versions)}. SHA-256:", ""]
        return [*lines, *(f"* `{path}`: `{digest}`" for path, digest in self.files.items()), ""]


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


def _of_defined_cases(score: CentreScore) -> str:
    """HD95, with the number of its cases where there are more."""
    if score.hd95 is None:
        return "–"
    is_of_all = score.dsc is None or score.hd95.cases == score.dsc.cases
    return str(score.hd95) + ("" if is_of_all else f" [{score.hd95.cases}]")


def _cell(value: Any) -> str:
    return one_line(str(value)).replace("|", "\\|")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]
