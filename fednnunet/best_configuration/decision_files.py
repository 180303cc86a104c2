"""The decision as files: for people and hospitals, for this package, and for nnU-Net's own tools."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fednnunet.best_configuration.decision import Candidate, Decision
from fednnunet.files import write_atomically

BEST_FILE = "best_configuration.json"
"""All of the decision; the last that is written."""
INFERENCE_FILE = "inference_information.json"
"""nnU-Net's form of it."""


def write_decision(folder: Path, decision: Decision, dataset: str | None = None) -> None:
    """Write ``best_configuration.json``, ``inference_information.json``, ``postprocessing.json`` and ``.pkl``.

    Args:
        folder: folder for the files; files of an earlier decision are replaced.
        decision: what was decided.
        dataset: name of nnU-Net's dataset, where all nodes have one.
    """
    (folder / BEST_FILE).unlink(missing_ok=True)  # of an earlier decision, to which the other files do not belong
    folder.mkdir(parents=True, exist_ok=True)
    decision.postprocessing.write(folder)
    _write(folder / INFERENCE_FILE, inference_information(decision, dataset))
    _write(folder / BEST_FILE, as_json(decision))


def as_json(decision: Decision) -> dict[str, Any]:
    """The decision as JSON; undefined means are null."""

    def of_labels(means: tuple[float, ...]) -> dict[str, float | None]:
        return {name: _defined(mean) for name, mean in zip(decision.labels.names, means, strict=True)}

    return {
        "format": 1,
        "nodes": list(decision.nodes),
        "num_cases": decision.num_cases,
        "folds": list(decision.folds),
        "personal": decision.personal,
        "labels_left_out": list(decision.left_out),
        "candidates": [
            {
                "models": [model.model_dump() for model in candidate.models],
                "dice": _defined(candidate.dice),
                "dice_of_labels": of_labels(candidate.of_labels),
            }
            for candidate in decision.candidates
        ],
        "best": {
            "models": [model.model_dump() for model in decision.best.models],
            "dice": decision.best.dice,
            "dice_after_postprocessing": decision.after,
            "dice_of_labels_after_postprocessing": of_labels(decision.of_labels_after),
        },
        "postprocessing_steps": [
            {
                "labels": list(step.labels),
                "name": step.name,
                "dice_before": _defined(step.before),
                "dice_after": _defined(step.after),
                "kept": step.kept,
            }
            for step in decision.steps
        ],
        "postprocessing": decision.postprocessing.to_json(),
        "digests": decision.digests,
    }


def inference_information(decision: Decision, dataset: str | None) -> dict[str, Any]:
    """What nnU-Net's ``find_best_configuration`` writes and returns, with names of files instead of paths.

    A file's place is relative to nnU-Net's folder of the dataset, ``nnUNet_results/DatasetXXX_Name``, of a node.
    """
    models = [_nnunets(candidate) for candidate in decision.candidates if len(candidate.models) == 1]
    best = decision.best
    return {
        "folds": list(decision.folds),
        "dataset_name_or_id": dataset or "",
        "considered_models": [model for (model,) in models],
        "ensembling_allowed": decision.ensembles,
        "all_results": {
            candidate_name(candidate, decision.folds): _defined(candidate.dice) for candidate in decision.candidates
        },
        "best_model_or_ensemble": {
            "result_on_crossval_pre_pp": best.dice,
            "result_on_crossval_post_pp": decision.after,
            "postprocessing_file": "postprocessing.pkl",
            "some_plans_file": f"{best.models[0].identifier}/plans.json",
            "selected_model_or_models": [
                {"configuration": model.configuration, "trainer": model.trainer, "plans_identifier": model.plans}
                for model in best.models
            ],
        },
    }


def candidate_name(candidate: Candidate, folds: tuple[int, ...]) -> str:
    """nnU-Net's name of a model, or of an ensemble."""
    identifiers = [model.identifier for model in candidate.models]
    return (
        identifiers[0] if len(identifiers) == 1 else "___".join(["ensemble", *identifiers, "_".join(map(str, folds))])
    )


def _nnunets(candidate: Candidate) -> list[dict[str, str]]:
    return [
        {"plans": model.plans, "configuration": model.configuration, "trainer": model.trainer}
        for model in candidate.models
    ]


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
