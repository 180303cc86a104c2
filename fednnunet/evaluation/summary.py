"""nnU-Net's ``summary.json`` of a fold's held-out cases."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from fednnunet.datasets.label_names import ANNOTATED
from fednnunet.datasets.pooled import centre_of
from fednnunet.preprocessing import REFERENCES


def write_summary(trainer: nnUNetTrainer, predictions: Path, identifiers: Sequence[str]) -> dict[str, Any]:
    """Score segmentations with nnU-Net's ``compute_metrics`` and write ``<predictions>/summary.json``.

    The file is the one that ``compute_metrics_on_folder`` writes, without the pool of processes that it starts (seconds
    of imports each). A label that a case's centre has not annotated is left out of the case and its mean: nnU-Net would
    score 0 where it is segmented rightly.

    Args:
        trainer: trainer whose plans, labels and reference segmentations are used.
        predictions: folder of the segmentations.
        identifiers: identifiers of the cases in it.

    Returns:
        What was written, with labels or regions as keys.
    """
    labels = trainer.label_manager
    references = Path(trainer.preprocessed_dataset_folder_base) / REFERENCES
    ending = trainer.dataset_json["file_ending"]
    reader = trainer.plans_manager.image_reader_writer_class()
    per_case = []
    for identifier in sorted(identifiers, key=lambda identifier: f"{identifier}{ending}"):
        files = (str(folder / f"{identifier}{ending}") for folder in (references, predictions))
        scored = scored_labels(labels, trainer.dataset_json, identifier)
        per_case.append(compute_metrics(*files, reader, scored, labels.ignore_label))
    everything = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    scored = [label for label in everything if any(label in case["metrics"] for case in per_case)]
    metrics = list(next(iter(per_case[0]["metrics"].values())))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")  # a label that no case holds: NaN
        mean = {
            label: {
                metric: np.nanmean([case["metrics"][label][metric] for case in per_case if label in case["metrics"]])
                for metric in metrics
            }
            for label in scored
        }
        average = np.nanmean if ANNOTATED in trainer.dataset_json else np.mean
        foreground = {metric: average([mean[label][metric] for label in scored]) for metric in metrics}
    result = {"metric_per_case": per_case, "mean": mean, "foreground_mean": foreground}
    for part in (*per_case, mean, foreground):
        recursive_fix_for_json_export(part)
    save_summary_json(result, str(predictions / "summary.json"))
    return result


def scored_labels(labels: LabelManager, dataset_json: Mapping[str, Any], identifier: str) -> list[Any]:
    """Labels (or regions) that a case is scored by, as nnU-Net names them: those that its centre has annotated."""
    if labels.has_regions:
        return labels.foreground_regions
    annotated = dataset_json.get(ANNOTATED)
    if annotated is None:
        return labels.foreground_labels
    names = annotated[centre_of(identifier)[0]] if isinstance(annotated, dict) else annotated
    values = {dataset_json["labels"][name] for name in names}
    return [label for label in labels.foreground_labels if label in values]
