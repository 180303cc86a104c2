"""The last stage: score a node's held-out cases with its own model, or with those of other nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.evaluation.ensemble import FoldModels, segment_with_each
from fednnunet.evaluation.held_out import held_out_segmenter
from fednnunet.evaluation.score import HeldOutCase, score_cases
from fednnunet.evaluation.summary import write_summary
from fednnunet.exchange.messages import CaseScore
from fednnunet.node.describe import NodeDataset
from fednnunet.node.settings import NodeSettings


def evaluate_fold(trainer: nnUNetTrainer, dataset: NodeDataset, settings: NodeSettings) -> list[CaseScore]:
    """Score the fold's held-out cases (of every pooled centre) with the trainer's network; none of fold all."""
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

    scores = _score(cases, segment_own, dataset, settings, predictions)
    summary = write_summary(trainer, folder, identifiers)
    trainer.print_to_log_file("Mean Validation Dice:", summary["foreground_mean"]["Dice"])
    return scores


def score_models(
    models: Sequence[FoldModels], cases: Sequence[HeldOutCase], dataset: NodeDataset, settings: NodeSettings
) -> list[CaseScore]:
    """Score ``cases`` with each node's models; at an external centre also with the ensemble of all of them."""

    def segment(held_out: HeldOutCase) -> Iterator[tuple[str, np.ndarray]]:
        images = [str(path) for path in held_out.case.images]
        return segment_with_each(models, images, settings.external)

    return _score(cases, segment, dataset, settings, None)


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
) -> list[CaseScore]:
    raw, config = dataset.raw, settings.config.evaluation
    reader = determine_reader_writer_from_dataset_json(raw.dataset_json, str(raw.cases[0].images[0]))()
    # Overlays of a training node show its own model.
    has_overlays = settings.same_machine and (predictions is not None or settings.external)
    return score_cases(
        cases,
        segment,
        reader,
        raw.labels,
        config.distance_unit,
        config.surface_tolerance,
        predictions,
        settings.folder / "overlays" if has_overlays else None,
    )
