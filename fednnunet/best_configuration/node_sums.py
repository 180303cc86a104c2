"""A node's sums: the Dice of its held-out cases, for each configuration, ensemble and step of post-processing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.best_configuration.case_scores import dice_by_state
from fednnunet.best_configuration.node_models import PROBABILITIES, TrainedFolds, held_out_files
from fednnunet.best_configuration.scored_labels import ScoredLabels, State, states_of
from fednnunet.best_configuration.sums import (
    CandidateSums,
    LabelSum,
    NodeSums,
    StateSums,
    candidates_of,
)
from fednnunet.datasets.checked_file import read_file
from fednnunet.datasets.file_integrity import inspect_file
from fednnunet.errors import DataError
from fednnunet.evaluation.saved_probabilities import read_probabilities
from fednnunet.evaluation.summary import scored_labels
from fednnunet.listing import join_first
from fednnunet.models.fold_digests import digest_folds
from fednnunet.processes import map_in_processes

CaseScores = dict[tuple[int, ...], dict[State, dict[int, float]]]
"""Numbers of models, state and number of the label, to Dice; of labels that the case's centre has annotated."""


@dataclass(frozen=True)
class _Case:
    """One held-out case: its segmentation by each model."""

    identifier: str
    segmentations: tuple[Path, ...]


def sum_up(
    models: Sequence[TrainedFolds],
    node: str,
    folds: Sequence[int] | None,
    ensembles: bool,
    postprocessing: bool,
    workers: int = 1,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> NodeSums:
    """Score a node's held-out cases by each model, and by the ensembles of each two, and add up.

    Args:
        models: the node's models, as :func:`~fednnunet.best_configuration.node_models.nodes_of` sorts them.
        node: name of the node.
        folds: folds to look at; None for those that are trained, which must be the same of each model.
        ensembles: whether to score ensembles.
        postprocessing: whether to score steps of post-processing.
        workers: number of processes.
        advance: called after each case, with the number of those done and of all.

    Raises:
        DataError: models have trained other folds or hold other cases out, ensembles lack their softmax outputs, or a
            file cannot be read.
    """
    first = models[0]
    chosen = _folds(models, folds)
    labels = ScoredLabels.of(first.dataset_json["labels"])
    states = states_of(labels, postprocessing)
    candidates = candidates_of(len(models), ensembles)
    cases = _cases(models, chosen)
    if ensembles and len(models) > 1:
        _check_probabilities(models, cases)
    if not first.references.is_dir():
        raise DataError(
            f"node {node}: its reference segmentations, {first.references}, are gone: they are in the cache "
            "(paths.cache); bring it back"
        )
    digests = [digest_folds(found.folder, list(map(str, chosen))) for found in models]
    score = partial(_score, models=models, labels=labels, states=states, candidates=candidates)
    values: dict[tuple[tuple[int, ...], State, int], list[float]] = {
        (candidate, state, number): []
        for candidate in candidates
        for state, changed in states.items()
        for number in changed
    }
    for done, scores in enumerate(map_in_processes(score, cases, workers), start=1):
        for candidate, by_state in scores.items():
            for state, by_label in by_state.items():
                for number, dice in by_label.items():
                    if not math.isnan(dice):
                        values[candidate, state, number].append(dice)
        advance(done, len(cases))
    return NodeSums(
        node=node,
        num_cases=len(cases),
        folds=chosen,
        labels=first.dataset_json["labels"],
        regions_class_order=first.dataset_json.get("regions_class_order"),
        models=[found.model for found in models],
        digests=digests,
        ensembles=ensembles,
        postprocessing=postprocessing,
        personal=first.personal,
        candidates=[
            CandidateSums(
                models=list(candidate),
                states=[
                    StateSums(
                        whole=state.whole,
                        labels=[labels.keys[step] for step in state.steps],
                        sums={labels.keys[number]: _sum(values[candidate, state, number]) for number in changed},
                    )
                    for state, changed in states.items()
                ],
            )
            for candidate in candidates
        ],
    )


def _sum(dice: Sequence[float]) -> LabelSum:
    return LabelSum(dice=math.fsum(dice), cases=len(dice))  # fsum: whatever the order of the cases


def _folds(models: Sequence[TrainedFolds], folds: Sequence[int] | None) -> list[int]:
    """Folds to look at, of every model."""
    if folds is not None:
        return sorted(set(folds))
    first = models[0]
    for other in models:
        if not other.folds:
            raise DataError(
                f"{other.where} has finished no fold that holds cases out; finish it, or train folds 0 to 4"
            )
        if other.folds != first.folds:
            ours, theirs = (", ".join(map(str, found.folds)) for found in (first, other))
            raise DataError(
                f"{first.where} has finished folds {ours}, {other.where} {theirs}; finish them (continue=FOLDER), or "
                "choose with --fold"
            )
    return list(first.folds)


def _cases(models: Sequence[TrainedFolds], folds: Sequence[int]) -> list[_Case]:
    """The cases that every model holds out."""
    files = [held_out_files(found, folds) for found in models]
    for found, here in zip(models, files, strict=True):
        if other := sorted(here.keys() ^ files[0].keys()):
            raise DataError(
                f"{models[0].where} and {found.where} hold other cases out, such as {join_first(other, 3)}; compare "
                "runs of the same data and splits"
            )
    return [_Case(identifier, tuple(here[identifier] for here in files)) for identifier in sorted(files[0])]


def _check_probabilities(models: Sequence[TrainedFolds], cases: Sequence[_Case]) -> None:
    """Check that softmax outputs are there, before anything is computed."""
    for place, found in enumerate(models):
        missing = [case.identifier for case in cases if not _probabilities_of(case, place, found).is_file()]
        if missing:
            raise DataError(
                f"{found.where} has no softmax outputs of {join_first(missing, 3)}, which ensembles need: train with "
                "trainer.save_probabilities=true, or compare with --no-ensembles"
            )


def _probabilities_of(case: _Case, place: int, found: TrainedFolds) -> Path:
    path = case.segmentations[place]
    return path.with_name(path.name.removesuffix(found.dataset_json["file_ending"]) + PROBABILITIES)


def _score(
    case: _Case,
    models: Sequence[TrainedFolds],
    labels: ScoredLabels,
    states: Mapping[State, Sequence[int]],
    candidates: Sequence[tuple[int, ...]],
) -> CaseScores:
    """Dice of one case by every candidate."""
    first = models[0]
    manager = PlansManager(first.plans)
    label_manager = manager.get_label_manager(first.dataset_json)
    annotated = scored_labels(label_manager, first.dataset_json, case.identifier)
    wanted = {
        state: [number for number in changed if labels.values[number] in annotated] for state, changed in states.items()
    }
    reference_file = first.references / case.segmentations[0].name
    reference = _read(manager, reference_file)
    scores: CaseScores = {}

    def add(candidate: tuple[int, ...], segmentation: np.ndarray) -> None:
        if segmentation.shape != reference.shape:
            raise DataError(
                f"{case.segmentations[candidate[0]]} has shape {segmentation.shape}, its reference {reference_file} "
                f"{reference.shape}; they must lie on one grid"
            )
        scores[candidate] = dice_by_state(segmentation, reference, labels, wanted)

    for place, found in enumerate(models):
        add((place,), _read(PlansManager(found.plans), case.segmentations[place]))
    pairs = [candidate for candidate in candidates if len(candidate) > 1]
    for place in sorted({first_of_pair for first_of_pair, _ in pairs}):  # two softmax outputs in memory at most
        ours = read_probabilities(_probabilities_of(case, place, models[place]))
        for pair in pairs:
            if pair[0] != place:
                continue
            path = _probabilities_of(case, pair[1], models[pair[1]])
            mean = read_probabilities(path)
            heads = (label_manager.num_segmentation_heads, *reference.shape)
            if ours.shape != heads or mean.shape != heads:
                raise DataError(f"{path} has shape {mean.shape}, that of the other model {ours.shape}, not {heads}")
            mean += ours
            mean /= 2  # as nnU-Net's ensemble.average_probabilities
            add(pair, label_manager.convert_probabilities_to_segmentation(mean).astype(np.int32))
    return scores


def _read(manager: PlansManager, path: Path) -> np.ndarray:
    """A label map (Z, Y, X) of integers."""
    inspect_file(path)  # SimpleITK does not say where a file was cut off
    reader: Any = manager.image_reader_writer_class()
    voxels, _ = read_file(reader.read_seg, str(path), path)
    values = np.rint(voxels[0]).astype(np.int32)
    if not np.array_equal(values, voxels[0]) or values.min(initial=0) < 0:
        raise DataError(f"{path} holds values that are no labels: they must be integers from 0")
    return values
