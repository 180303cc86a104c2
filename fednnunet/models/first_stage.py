"""The first stage of a cascade: which model it is, by its plans and the segmentations that it was trained on."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable
from dataclasses import replace

from fednnunet.errors import DataError
from fednnunet.models.json_file import read_json
from fednnunet.models.model_folder import ModelFolder
from fednnunet.run_files import PREDICTED


def name_first_stage(model: ModelFolder) -> str | None:
    """Configuration whose segmentations a model takes, by the plans beside it; None without a cascade, or plans."""
    path = model.path / "plans.json"
    if not path.is_file():
        return None
    configurations = read_json(path, model.node).get("configurations")
    name: object = model.configuration
    for _ in range(len(configurations) if isinstance(configurations, dict) else 0):
        found = configurations.get(name) if isinstance(name, str) else None
        if not isinstance(found, dict):
            return None
        if isinstance(stage := found.get("previous_stage"), str):
            return stage
        name = found.get("inherits_from")
    return None


def trained_on(cascade: ModelFolder, stage: ModelFolder) -> bool | None:
    """Whether a cascade was trained on this model's segmentations; None where they are not on this disk.

    A cascade's run holds copies of what the first stage segmented, beside its model.

    Raises:
        DataError: a segmentation cannot be read.
    """
    name = f"{cascade.trainer}__{cascade.plans}__{stage.configuration}"
    copies = cascade.path.parent / name / PREDICTED / cascade.configuration
    made = stage.path / PREDICTED / cascade.configuration
    try:
        pairs = [(path, copies / path.name) for path in sorted(made.glob("*")) if (copies / path.name).is_file()]
        return all(filecmp.cmp(*pair, shallow=False) for pair in pairs) if pairs else None
    except OSError as error:
        raise DataError(f"{error.filename or made} cannot be read: {error.strerror}") from None


def find_first_stage(cascade: ModelFolder, models: Iterable[Iterable[ModelFolder]]) -> list[ModelFolder]:
    """The first stage of a cascade, of the same folds: its folder, or those of runs of single folds.

    Args:
        cascade: the cascade.
        models: models to choose among; each a folder, or folders of single folds.

    Returns:
        Folders, with these folds alone; none where no model, or more than one, may be it, or there is no cascade.

    Raises:
        DataError: plans or a segmentation cannot be read.
    """
    stage = name_first_stage(cascade)
    if stage is None:
        return []
    known: list[list[ModelFolder]] = []
    possible: list[list[ModelFolder]] = []
    for folders in models:
        # A node's own models of the first stage are never what a cascade refines.
        of_stage = [one for one in folders if one.configuration == stage and not one.is_personal]
        found = [replace(one, folds=tuple(fold for fold in one.folds if fold in cascade.folds)) for one in of_stage]
        found = [one for one in found if one.folds]
        if {fold for one in found for fold in one.folds} != set(cascade.folds):
            continue
        said = [trained_on(cascade, one) for one in found]
        if False not in said:
            (known if True in said else possible).append(found)
    found_models = known or possible
    return found_models[0] if len(found_models) == 1 else []
