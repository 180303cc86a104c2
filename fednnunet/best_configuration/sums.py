"""What a node tells of its held-out cases: sums of Dice and numbers of cases, no case."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.best_configuration.scored_labels import ScoredLabels, State, states_of
from fednnunet.errors import DataError, first_problem, one_line
from fednnunet.exchange.messages import MAX_FOLDS, NodeName
from fednnunet.files import write_atomically
from fednnunet.models.fold_digests import FoldDigests

MOST_BYTES = 2**26
"""Size of a file beyond which it is none of sums."""
ORDER = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""nnU-Net's order of configurations: of equally good ones the first is chosen."""
Part = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.\-]{0,127}$")]
Value = Annotated[int, Field(strict=True, ge=0, le=65535)]
LabelText = Annotated[str, Field(max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(_Body):
    """What nnU-Net calls a trained model: one configuration of one trainer and plans, all folds.

    Attributes:
        trainer: trainer class.
        plans: name of the plans.
        configuration: configuration.
    """

    trainer: Part
    plans: Part
    configuration: Part

    @property
    def identifier(self) -> str:
        """Name of nnU-Net's folder for it."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def place(self) -> tuple[int, str, str, str]:
        """By which models are sorted: nnU-Net's order of configurations, then by name."""
        known = ORDER.index(self.configuration) if self.configuration in ORDER else len(ORDER)
        return known, self.configuration, self.trainer, self.plans


class LabelSum(_Body):
    """Over a node's held-out cases in which a label is defined: in the prediction, the reference, or both.

    Attributes:
        dice: sum of Dice.
        cases: number of the cases.
    """

    dice: Annotated[float, Field(ge=0)]
    cases: Annotated[int, Field(strict=True, ge=0)]


class StateSums(_Body):
    """Sums after steps of post-processing (:class:`~fednnunet.best_configuration.scored_labels.State`).

    Attributes:
        whole: whether only the largest component of the foreground was kept.
        labels: labels of which only the largest component was kept after that.
        sums: label to sums.
    """

    whole: Annotated[bool, Field(strict=True)]
    labels: Annotated[list[LabelText], Field(max_length=1000)]
    sums: Annotated[dict[LabelText, LabelSum], Field(max_length=1000)]


class CandidateSums(_Body):
    """Sums of a model, or of the ensemble of two.

    Attributes:
        models: numbers of the models among those of the node.
        states: sums before and after steps of post-processing.
    """

    models: Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1, max_length=2)]
    states: Annotated[list[StateSums], Field(max_length=100_000)]


class NodeSums(_Body):
    """All that leaves a node.

    Attributes:
        format: version of this form.
        node: name of the node.
        num_cases: number of its held-out cases, over all folds.
        folds: folds whose held-out cases were scored.
        labels: nnU-Net's ``labels``.
        regions_class_order: nnU-Net's, where labels are regions.
        models: what is compared, in nnU-Net's order.
        digests: of each model, fold to SHA-256 of what was compared
            (:func:`~fednnunet.models.fold_digests.digest_folds`).
        ensembles: whether ensembles of two models are compared, too.
        postprocessing: whether steps of post-processing are.
        personal: whether the models are the nodes' own, fine-tuned or Ditto's.
        candidates: sums of each.
    """

    format: Literal[1] = 1
    node: NodeName
    num_cases: Annotated[int, Field(strict=True, ge=0)]
    folds: Annotated[
        list[Annotated[int, Field(strict=True, ge=0, lt=MAX_FOLDS)]], Field(min_length=1, max_length=MAX_FOLDS)
    ]
    labels: Annotated[
        dict[LabelText, Value | Annotated[list[Value], Field(min_length=1)]], Field(min_length=2, max_length=1000)
    ]
    regions_class_order: Annotated[list[Value], Field(max_length=1000)] | None = None
    models: Annotated[list[Model], Field(min_length=1, max_length=20)]
    digests: Annotated[list[FoldDigests], Field(max_length=20)]
    ensembles: Annotated[bool, Field(strict=True)]
    postprocessing: Annotated[bool, Field(strict=True)]
    personal: Annotated[bool, Field(strict=True)] = False
    candidates: Annotated[list[CandidateSums], Field(max_length=1000)]

    def scored_labels(self) -> ScoredLabels:
        """Labels that are compared."""
        return ScoredLabels.of(self.labels)

    def by_candidate(self) -> dict[tuple[int, ...], dict[State, dict[int, LabelSum]]]:
        """Sums by numbers of models, state and number of the label."""
        number = {key: place for place, key in enumerate(self.scored_labels().keys)}
        return {
            tuple(candidate.models): {
                State(state.whole, tuple(number[key] for key in state.labels)): {
                    number[key]: of_label for key, of_label in state.sums.items()
                }
                for state in candidate.states
            }
            for candidate in self.candidates
        }


def candidates_of(models: int, ensembles: bool) -> list[tuple[int, ...]]:
    """Numbers of models of each candidate, in nnU-Net's order: each model, then each pair."""
    single: list[tuple[int, ...]] = [(number,) for number in range(models)]
    pairs = [(first, second) for first in range(models) for second in range(first + 1, models)]
    return single + (pairs if ensembles else [])


def few_cases(sums: NodeSums, enough: int) -> list[str]:
    """Names of labels of which a sum is over fewer cases than ``enough``, but over some."""
    labels = sums.scored_labels()
    told = [label for states in sums.by_candidate().values() for state in states.values() for label in state.items()]
    few = {number for number, of_label in told if 0 < of_label.cases < enough}
    return [name for number, name in enumerate(labels.names) if number in few]


def write_sums(path: Path, sums: NodeSums) -> None:
    """Write what a node tells, as JSON that people can read before it leaves."""
    write_atomically(path, json.dumps(sums.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def read_sums(path: Path) -> NodeSums:
    """Read and check what a node told.

    Raises:
        DataError: the file cannot be read, is of another form, or its numbers cannot be; names file and field.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES} bytes, so it holds no sums")
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {one_line(str(error))}") from None
    try:
        sums = NodeSums.model_validate(parsed)
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error, 'the sums')}; write it again with --node-sums") from None
    problem = next(_problems(sums, parsed), None)
    if problem is not None:
        raise DataError(f"{path}, of node {sums.node}: {problem}; write it again with --node-sums")
    return sums


def check_together(told: Sequence[tuple[str, NodeSums]]) -> None:
    """Check that sums of several nodes can be added.

    Args:
        told: where each was read from, and the sums.

    Raises:
        DataError: a node is there twice, or nodes compared other things; names the nodes and what differs.
    """
    seen: dict[str, str] = {}
    for where, sums in told:
        if sums.node in seen:
            raise DataError(f"{seen[sums.node]} and {where} are both of node {sums.node}; give one of each node")
        seen[sums.node] = where
    first_where, first = told[0]
    for where, sums in told[1:]:
        for name, ours, theirs in _compared(first, sums):
            if ours != theirs:
                raise DataError(
                    f"{name} of node {sums.node} ({where}) are {theirs}, those of node {first.node} ({first_where}) "
                    f"{ours}; all nodes must compare the same runs with the same options"
                )


def check_copies(told: Sequence[tuple[str, NodeSums]]) -> None:
    """Check that no file is there twice under two names.

    Args:
        told: where each was read from, and the sums.

    Raises:
        DataError: two hold the same; names them.
    """
    by_content: dict[str, str] = {}
    for where, sums in told:
        content = sums.model_dump_json(exclude={"node"})
        if content in by_content and not _is_trivial(sums):
            raise DataError(f"{by_content[content]} and {where} hold the same numbers under two names; give each once")
        by_content[content] = where


def _compared(first: NodeSums, other: NodeSums) -> Iterator[tuple[str, str, str]]:
    for name, text in (
        ("labels", lambda sums: _labels_text(sums.labels)),
        ("regions_class_order", lambda sums: str(sums.regions_class_order)),
        ("configurations", lambda sums: ", ".join(model.identifier for model in sums.models)),
        ("folds", lambda sums: ", ".join(map(str, sums.folds))),
        ("ensembles", lambda sums: "compared" if sums.ensembles else "left out (--no-ensembles)"),
        ("models", lambda sums: "the nodes' own (--personal)" if sums.personal else "the federation's"),
        ("steps of post-processing", lambda sums: "compared" if sums.postprocessing else "left out"),
    ):
        yield name, text(first), text(other)


def _labels_text(labels: dict[str, Any]) -> str:
    """As they count: in the order of the entries, by which nnU-Net goes where labels are regions."""
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    return ", ".join(f"{name} {value}" for name, value in (labels.items() if regions else sorted(labels.items())))


def _is_trivial(sums: NodeSums) -> bool:
    """Whether two nodes may well have told the same: no Dice but 0 and 1."""
    everything = (s.dice for c in sums.candidates for state in c.states for s in state.sums.values())
    return all(value == int(value) for value in everything)


def _problems(sums: NodeSums, parsed: Any) -> Iterator[str]:
    """What makes sums impossible, though each field is of its type."""
    if sums.labels.get("background") != 0 or not isinstance(sums.labels.get("ignore", 1), int):
        yield "labels must have background 0, and ignore one value"
        return
    if sums.folds != sorted(set(sums.folds)):
        yield "folds must be sorted, each once"
    if sums.models != sorted({model.identifier: model for model in sums.models}.values(), key=lambda m: m.place):
        yield "models must be in nnU-Net's order, each once"
    if [list(digests) for digests in sums.digests] != [list(map(str, sums.folds))] * len(sums.models):
        yield "digests must be of each model, in its folds"
    labels = sums.scored_labels()
    if not labels.values:
        yield "labels are none but background"
        return
    expected = candidates_of(len(sums.models), sums.ensembles)
    if [tuple(candidate.models) for candidate in sums.candidates] != expected:
        yield f"candidates must be of models {', '.join(map(str, expected))}"
        return
    states = [
        (state.whole, [labels.keys[step] for step in state.steps], [labels.keys[number] for number in changed])
        for state, changed in states_of(labels, sums.postprocessing).items()
    ]
    for candidate in sums.candidates:
        name = " and ".join(sums.models[number].configuration for number in candidate.models)
        if [(state.whole, state.labels, list(state.sums)) for state in candidate.states] != states:
            yield f"states of {name} are not those of its labels"
            return
        for state in candidate.states:
            for key, told in state.sums.items():
                where = f"{name}, label {key}"
                if told.cases > sums.num_cases:
                    yield f"{where}: {told.cases} cases, more than its {sums.num_cases}"
                if not math.isfinite(told.dice) or told.dice > told.cases * (1 + 1e-12):
                    yield f"{where}: the sum of Dice, {told.dice}, is more than the number of cases, {told.cases}"
