"""Do all nodes of a run hold the same model? With FedAvg on equal networks they do, after the last round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from fednnunet.models.model_folder import ModelFolder
from fednnunet.models.open_model import open_folder
from fednnunet.models.portable import portable_description, portable_plans
from fednnunet.models.trained_model import TrainedModel

OF_FILES = ("file_ending", "overwrite_image_reader_writer", "image_reader_writer", "dataset_name")
"""Keys by which a node's files differ from another's, and not its network."""


def is_shared(folders: Sequence[ModelFolder], folds: Sequence[str]) -> bool:
    """Whether models of several nodes are one: the same plans, labels, channels and, bit by bit, weights.

    Args:
        folders: one of each node, of one configuration.
        folds: that each of them must have.

    Raises:
        DataError: one cannot be read.
    """
    first, *others = folders
    if any(not set(folds) <= set(folder.folds) or folder.path.name != first.path.name for folder in folders):
        return False
    digests = _digest(open_folder(first, tuple(folds)))
    return all(_digest(open_folder(folder, tuple(folds))) == digests for folder in others)


def _digest(model: TrainedModel) -> str:
    dataset_json = portable_description(model.dataset_json, model.where)
    plans = portable_plans(model.plans, model.configuration, len(dataset_json["channel_names"]), model.where)
    described = [{key: value for key, value in part.items() if key not in OF_FILES} for part in (plans, dataset_json)]
    steps = model.postprocessing.to_json() if model.postprocessing is not None else None
    digest = hashlib.sha256(json.dumps([*described, model.mirror_axes, steps]).encode())
    for fold in model.folds:
        for name, tensor in model.weights(fold).items():
            digest.update(json.dumps([fold, name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
