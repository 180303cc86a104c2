"""Which configuration, or ensemble of two, is best, and which post-processing helps it: nnU-Net's rules, on sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fednnunet.best_configuration.scored_labels import ScoredLabels, State
from fednnunet.best_configuration.sums import LabelSum, Model, NodeSums
from fednnunet.errors import DataError
from fednnunet.listing import join_all
from fednnunet.models.postprocessing import Postprocessing

ROUNDING = 1e-12
"""Means of Dice that differ by less are equal: sums over nodes are rounded in another order than nnU-Net's. One voxel
in a label of 10⁶ changes the mean over 10⁵ cases by more."""

WHOLE = "whole foreground"
Sums = Mapping[tuple[int, ...], Mapping[State, Mapping[int, LabelSum]]]
"""Numbers of models, state and number of the label to sums."""


@dataclass(frozen=True)
class Candidate:
    """A model, or the ensemble of two, before post-processing.

    Attributes:
        models: the models.
        dice: mean over labels of the mean Dice over cases; NaN where a label is in no case and no prediction.
        of_labels: mean Dice of each label.
    """

    models: tuple[Model, ...]
    dice: float
    of_labels: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """A step of post-processing that was tried.

    Attributes:
        labels: values of the labels of which only the largest component is kept.
        name: what they are.
        before: mean Dice without the step: over labels for the whole foreground, else of the label.
        after: the same with it.
        kept: whether it helps.
    """

    labels: tuple[int, ...]
    name: str
    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class Decision:
    """What all nodes' held-out cases say.

    Attributes:
        nodes: names of the nodes.
        num_cases: number of their held-out cases.
        folds: folds whose held-out cases were scored.
        labels: labels that were compared.
        left_out: names of those that no case and no prediction holds, and that do not count.
        ensembles: whether ensembles were compared.
        personal: whether the models are the nodes' own, fine-tuned or Ditto's.
        candidates: all, in the order in which the first of equally good ones is chosen.
        best: the chosen one.
        steps: steps of post-processing that were tried; none where they were not compared.
        after: the chosen one's mean Dice after post-processing.
        of_labels_after: its labels' mean Dice after post-processing.
        digests: node to name of each model's folder to fold to SHA-256 of what was compared.
    """

    nodes: tuple[str, ...]
    num_cases: int
    folds: tuple[int, ...]
    labels: ScoredLabels
    left_out: tuple[str, ...]
    ensembles: bool
    personal: bool
    candidates: tuple[Candidate, ...]
    best: Candidate
    steps: tuple[Step, ...]
    after: float
    of_labels_after: tuple[float, ...]
    digests: Mapping[str, Mapping[str, Mapping[str, str]]]

    @property
    def postprocessing(self) -> Postprocessing:
        """The steps that help."""
        return Postprocessing.of([step.labels for step in self.steps if step.kept])


def decide(told: Sequence[NodeSums]) -> Decision:
    """Decide as nnU-Net's ``find_best_configuration`` and ``determine_postprocessing`` do on all nodes' cases together.

    With S(n, l) the sum of Dice of label l over the cases of node n in which it is defined, and N(n, l) their number, a
    label's mean is Σₙ S(n, l) / Σₙ N(n, l), and a model's score the mean over labels: nnU-Net's ``np.nanmean`` over
    cases, then ``np.mean`` over labels. A score of NaN is never the best. Of scores that differ by less than
    :data:`ROUNDING`, the first wins. A step for the whole foreground helps where the mean over labels rises and no
    label's falls; a step for one label, where that label's rises.

    nnU-Net stops with an error where the first model has a score of NaN. Here, a label that no candidate has a Dice of
    is left out.

    Args:
        told: sums of all nodes, which
            :func:`~fednnunet.best_configuration.sums.check_together` has checked.

    Raises:
        DataError: no label has a Dice in any case.
    """
    first = told[0]
    labels = first.scored_labels()
    sums = _add([one.by_candidate() for one in told])
    as_they_are = State(False, ())
    counted = [n for n in range(len(labels.values)) if any(state[as_they_are][n].cases for state in sums.values())]
    if not counted:
        raise DataError(
            f"no held-out case of {join_all([one.node for one in told])} holds a label, or a prediction of one"
        )
    candidates = {}
    for models, states in sums.items():
        means = _means(states[as_they_are])
        named = tuple(first.models[number] for number in models)
        of_labels = tuple(means[number] for number in range(len(labels.values)))
        candidates[models] = Candidate(named, _mean([means[number] for number in counted]), of_labels)
    scores = [candidate.dice for candidate in candidates.values() if not math.isnan(candidate.dice)]
    if not scores:
        raise DataError(
            "each configuration lacks a Dice of another label, so that none can be compared: neither reference nor "
            "prediction holds it"
        )
    highest = max(scores)
    best = next(models for models, candidate in candidates.items() if candidate.dice > highest - ROUNDING)
    steps, after = _choose_steps(labels, counted, sums[best]) if first.postprocessing else ([], sums[best][as_they_are])
    of_labels_after = _means(after)
    return Decision(
        nodes=tuple(one.node for one in told),
        num_cases=sum(one.num_cases for one in told),
        folds=tuple(first.folds),
        labels=labels,
        left_out=tuple(name for number, name in enumerate(labels.names) if number not in counted),
        ensembles=first.ensembles,
        personal=first.personal,
        candidates=tuple(candidates.values()),
        best=candidates[best],
        steps=tuple(steps),
        after=_mean([of_labels_after[number] for number in counted]),
        of_labels_after=tuple(of_labels_after[number] for number in range(len(labels.values))),
        digests={
            one.node: {model.identifier: of_model for model, of_model in zip(one.models, one.digests, strict=True)}
            for one in told
        },
    )


def _choose_steps(
    labels: ScoredLabels, counted: Sequence[int], states: Mapping[State, Mapping[int, LabelSum]]
) -> tuple[list[Step], dict[int, LabelSum]]:
    """Steps that nnU-Net tries one after another, and the labels' sums after those that help."""
    before, after = (_means(states[State(whole, ())]) for whole in (False, True))
    score, score_after = (_mean([of_labels[number] for number in counted]) for of_labels in (before, after))
    whole = score_after > score + ROUNDING and not any(after[n] < before[n] - ROUNDING for n in counted)
    steps = [Step(labels.foreground, WHOLE, score, score_after, whole)]
    chosen = dict(states[State(whole, ())])
    if len(labels.values) == 1:
        return steps, chosen
    group_of = {number: group for group in labels.groups() for number in group}
    taken: dict[tuple[int, ...], tuple[int, ...]] = dict.fromkeys(group_of.values(), ())
    for number, name in enumerate(labels.names):
        group = group_of[number]
        with_it = (*taken[group], number)
        tried = states[State(whole, with_it)]
        now, then = _means(chosen)[number], _means(tried)[number]
        helps = then > now + ROUNDING
        if helps:
            taken[group] = with_it
            chosen |= tried
        steps.append(Step(labels.held(number), name, now, then, helps))
    return steps, chosen


def _add(told: Sequence[Sums]) -> dict[tuple[int, ...], dict[State, dict[int, LabelSum]]]:
    """Sums over nodes; of the same nodes in whatever order the same."""
    return {
        models: {
            state: {
                number: LabelSum(
                    dice=math.fsum(sums[models][state][number].dice for sums in told),
                    cases=sum(sums[models][state][number].cases for sums in told),
                )
                for number in by_label
            }
            for state, by_label in states.items()
        }
        for models, states in told[0].items()
    }


def _means(sums: Mapping[int, LabelSum]) -> dict[int, float]:
    """Mean Dice of each label; NaN where no case has one."""
    return {number: told.dice / told.cases if told.cases else math.nan for number, told in sums.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
