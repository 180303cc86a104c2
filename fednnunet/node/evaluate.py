"""The last stage: score a node's held-out cases with its own model, or with those of other nodes."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.privacy import Scores
from fednnunet.datasets.union_channels import missing_channels
from fednnunet.evaluation.ensemble import FoldModels, segment_with_each
from fednnunet.evaluation.held_out import held_out_segmenter
from fednnunet.evaluation.score import HeldOutCase, score_cases
from fednnunet.evaluation.summary import write_summary
from fednnunet.evaluation.told_scores import scores_to_tell, told_scores
from fednnunet.exchange.messages import CaseScore, Fold, Score
from fednnunet.files import write_atomically
from fednnunet.node.describe import NodeDataset
from fednnunet.node.settings import NodeSettings

log = logging.getLogger(__name__)


def evaluate_fold(
    trainer: nnUNetTrainer, dataset: NodeDataset, settings: NodeSettings, personal: bool = False
) -> list[Score]:
    """Score the fold's held-out cases (of every pooled centre) with the trainer's network; none of fold all.

    Args:
        trainer: trained.
        dataset: its data.
        settings: settings of the node.
        personal: the network is the node's own. Its scores stay there where noise hides what training tells, of which
            there is none on this network.

    Returns:
        What the node tells of the scores.
    """
    cases = held_out_cases(trainer, dataset)
    if not cases:
        return []
    identifiers = [case.identifier for case in cases]
    folder = Path(trainer.output_folder) / "validation"
    probabilities = folder if settings.config.trainer.save_probabilities else None
    segment = held_out_segmenter(trainer, identifiers, probabilities)
    predictions = folder, dataset.raw.file_ending

    def segment_own(case: HeldOutCase) -> Iterator[tuple[None, np.ndarray]]:
        yield None, segment(case)

    scores = _score(cases, segment_own, dataset, settings, predictions, personal)
    summary = write_summary(trainer, folder, identifiers)
    trainer.print_to_log_file("Mean Validation Dice:", summary["foreground_mean"]["Dice"])
    return tell_fold(scores, trainer.fold, settings, personal)


def score_models(
    models: Sequence[FoldModels],
    cases: Sequence[HeldOutCase],
    dataset: NodeDataset,
    settings: NodeSettings,
    fold: Fold | None,
) -> list[Score]:
    """Score ``cases`` with each node's models; at an external centre also with the ensemble of all of them.

    Args:
        models: by node.
        cases: the cases.
        dataset: they are of.
        settings: settings of the node.
        fold: fold that holds the cases out; None at an external centre.

    Returns:
        What the node tells of the scores.
    """

    def segment(held_out: HeldOutCase) -> Iterator[tuple[str, np.ndarray]]:
        images = [str(path) for path in held_out.case.images]
        return segment_with_each(models, images, settings.external)

    scores = _score(cases, segment, dataset, settings, None)
    return tell(scores, settings, "cases_of_models.csv" if fold is None else f"cases_fold_{fold}_of_models.csv")


def held_out_cases(trainer: nnUNetTrainer, dataset: NodeDataset) -> list[HeldOutCase]:
    """Cases that the trainer's fold holds out: none of those that it is trained on, where it validates on them."""
    training, validation = trainer.do_split()
    held_out = set(validation) - set(training)
    return [case for case in dataset.cases() if case.identifier in held_out]


def _score(
    cases: Sequence[HeldOutCase],
    segment: Callable[[HeldOutCase], Iterable[tuple[str | None, np.ndarray]]],
    dataset: NodeDataset,
    settings: NodeSettings,
    predictions: tuple[Path, str] | None,
    personal: bool = False,
) -> list[CaseScore]:
    raw, config = dataset.raw, settings.config.evaluation
    reader = determine_reader_writer_from_dataset_json(raw.dataset_json, str(raw.cases[0].images[0]))()
    # Overlays of a training node show its own model.
    missing = missing_channels(raw.dataset_json)  # zeros, which show nothing
    shows_cases = settings.same_machine and settings.config.privacy.scores == "cases"
    has_overlays = shows_cases and (predictions is not None or settings.external)
    folder = settings.folder / "personal" if personal else settings.folder
    return score_cases(
        cases,
        segment,
        reader,
        raw.labels,
        config.distance_unit,
        config.surface_tolerance,
        predictions,
        folder / "overlays" if has_overlays else None,
        dataset.annotated,
        next(number for number in range(len(raw.channel_names)) if number not in missing),
    )


def tell_fold(scores: Sequence[CaseScore], fold: Fold, settings: NodeSettings, personal: bool = False) -> list[Score]:
    """What leaves the node of a fold's scores, by the model of the federation or by that of its own.

    A mean is also over cases of earlier folds that were too few for one: each case counts once in cross-validation.
    """
    privacy, name = settings.config.privacy, partial(_file_of, personal)
    if personal and (privacy.case is not None or privacy.node is not None):
        _keep(scores, settings, name(fold), "nothing")
        return []
    if privacy.scores == "mean":
        folds = settings.config.folds
        earlier = [_own_scores(settings, name(one)) for one in folds[: folds.index(fold)]]
        _keep(scores, settings, name(fold), "mean")
        return told_scores(scores_to_tell([*earlier, scores]), "mean")
    return tell(scores, settings, name(fold))


def tell(scores: Sequence[CaseScore], settings: NodeSettings, name: str) -> list[Score]:
    """What leaves the node of ``scores``; where that is less, all of them are in its folder, under ``name``."""
    allowed = settings.config.privacy.scores
    if allowed != "cases":
        _keep(scores, settings, name, allowed)
    return told_scores(scores, allowed)


def _file_of(personal: bool, fold: Fold) -> str:
    return f"cases_fold_{fold}{'_personal' if personal else ''}.csv"


def _keep(scores: Sequence[CaseScore], settings: NodeSettings, name: str, allowed: Scores) -> None:
    path, table = settings.folder / name, io.StringIO()
    writer = csv.DictWriter(table, list(CaseScore.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(score.model_dump() for score in scores)
    write_atomically(path, table.getvalue())
    log.info("the scores of each case are in %s, and leave this node as: %s", path, allowed)


def _own_scores(settings: NodeSettings, name: str) -> list[CaseScore]:
    """Scores that :func:`tell` has kept in the node's folder; none where the fold was not scored."""
    path = settings.folder / name
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [CaseScore.model_validate({key: value or None for key, value in row.items()}) for row in rows]
