"""Do all nodes of a run hold the same model? With FedAvg on equal networks they do, after the last round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from fednnunet.models.ensemble import Ensemble
from fednnunet.models.model_folder import ModelFolder
from fednnunet.models.open_model import open_folder
from fednnunet.models.portable import portable_description, portable_plans

OF_FILES = ("file_ending", "overwrite_image_reader_writer", "image_reader_writer", "dataset_name")
"""Keys by which a node's files differ from another's, and not its network."""


def is_shared(folders: Sequence[ModelFolder], folds: Sequence[str]) -> bool:
    """Whether models of several nodes are one, as :func:`are_one` says.

    Args:
        folders: one of each node, of one configuration.
        folds: that each of them must have.

    Raises:
        DataError: one cannot be read.
    """
    first = folders[0]
    if any(not set(folds) <= set(folder.folds) or folder.path.name != first.path.name for folder in folders):
        return False
    return are_one([Ensemble.of_one(open_folder(folder, tuple(folds))) for folder in folders])


def are_one(ensembles: Sequence[Ensemble]) -> bool:
    """Whether what several nodes segment with is one: the same plans, labels, channels and, bit by bit, weights.

    Raises:
        DataError: a model cannot be read.
    """
    first, *others = ensembles
    if any(_names(one) != _names(first) for one in others):
        return False
    digests = _digest(first)
    return all(_digest(one) == digests for one in others)


def _names(ensemble: Ensemble) -> list[tuple[object, ...]]:
    return [
        (model.trainer, model.plans.get("plans_name"), model.configuration, model.folds) for model in ensemble.models
    ]


def _digest(ensemble: Ensemble) -> str:
    steps = None if ensemble.postprocessing is None else ensemble.postprocessing.to_json()
    digest = hashlib.sha256(json.dumps(steps).encode())
    for model in ensemble.models:
        dataset_json = portable_description(model.dataset_json, model.where)
        plans = portable_plans(model.plans, model.configuration, len(dataset_json["channel_names"]), model.where)
        described = [
            {key: value for key, value in part.items() if key not in OF_FILES} for part in (plans, dataset_json)
        ]
        digest.update(json.dumps([*described, model.mirror_axes]).encode())
        for fold in model.folds:
            for name, tensor in model.weights(fold).items():
                digest.update(json.dumps([fold, name, str(tensor.dtype), list(tensor.shape)]).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
