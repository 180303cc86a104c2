"""Segment a fold's held-out cases after training, as nnU-Net does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.evaluation.predict import Predictor
from fednnunet.evaluation.score import HeldOutCase
from fednnunet.training.cascade import preprocessed_cases, preprocessed_input, save_for_next_stages


def held_out_segmenter(
    trainer: nnUNetTrainer, identifiers: Sequence[str], probabilities: Path | None
) -> Callable[[HeldOutCase], np.ndarray]:
    """A function that segments one held-out case with the trainer's network.

    It does what ``nnUNetTrainer.perform_actual_validation`` does with a case: a cascade gets the previous stage's
    segmentation, and a stage that has a next one saves its own for it.

    Args:
        trainer: trained nnU-Net trainer.
        identifiers: identifiers of the cases.
        probabilities: folder for softmax outputs and properties, as ``nnUNetv2_ensemble`` expects them, or None.
    """
    predictor = Predictor.of_trainer(trainer)
    dataset = preprocessed_cases(trainer, identifiers)
    if probabilities is not None:
        probabilities.mkdir(parents=True, exist_ok=True)

    def segment(held_out: HeldOutCase) -> np.ndarray:
        data, properties = preprocessed_input(trainer, dataset, held_out.identifier)
        logits = predictor.logits(data)
        save_for_next_stages(trainer, held_out.identifier, logits, properties)
        if probabilities is None:
            return predictor.segment(logits, properties)
        segmentation, softmax = predictor.segment_with_probabilities(logits, properties)
        np.savez_compressed(probabilities / f"{held_out.identifier}.npz", probabilities=softmax)
        save_pickle(properties, str(probabilities / f"{held_out.identifier}.pkl"))
        return segmentation

    return segment
