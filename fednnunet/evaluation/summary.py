"""nnU-Net's ``summary.json`` of a fold's held-out cases."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from fednnunet.preprocessing import REFERENCES


def write_summary(trainer: nnUNetTrainer, predictions: Path, identifiers: Sequence[str]) -> dict[str, Any]:
    """Score segmentations with nnU-Net's ``compute_metrics`` and write ``<predictions>/summary.json``.

    The file is the one that ``compute_metrics_on_folder`` writes, without the pool of processes that it starts (seconds
    of imports each).

    Args:
        trainer: trainer whose plans, labels and reference segmentations are used.
        predictions: folder of the segmentations.
        identifiers: identifiers of the cases in it.

    Returns:
        What was written, with labels or regions as keys.
    """
    labels = trainer.label_manager
    scored = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    references = Path(trainer.preprocessed_dataset_folder_base) / REFERENCES
    files = sorted(f"{identifier}{trainer.dataset_json['file_ending']}" for identifier in identifiers)
    reader = trainer.plans_manager.image_reader_writer_class()
    per_case = [
        compute_metrics(str(references / file), str(predictions / file), reader, scored, labels.ignore_label)
        for file in files
    ]
    metrics = list(per_case[0]["metrics"][scored[0]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")  # a label that no case holds: NaN
        mean = {
            label: {metric: np.nanmean([case["metrics"][label][metric] for case in per_case]) for metric in metrics}
            for label in scored
        }
    foreground = {metric: np.mean([mean[label][metric] for label in scored]) for metric in metrics}
    result = {"metric_per_case": per_case, "mean": mean, "foreground_mean": foreground}
    for part in (*per_case, mean, foreground):
        recursive_fix_for_json_export(part)
    save_summary_json(result, str(predictions / "summary.json"))
    return result
