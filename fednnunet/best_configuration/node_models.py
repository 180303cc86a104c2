"""A node's trained models in the folders of its runs, and their segmentations of held-out cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fednnunet.best_configuration.sums import Model
from fednnunet.datasets.description import read_description
from fednnunet.datasets.splits import SPLITS_FILE
from fednnunet.errors import DataError
from fednnunet.listing import join_first
from fednnunet.models.json_file import read_json
from fednnunet.models.model_folder import ModelFolder, find_folders
from fednnunet.models.open_model import check_readable
from fednnunet.preprocessing import REFERENCES

UNNAMED = "this node"
"""In the place of the name of a node, of which there is only its own folder."""
VALIDATION = "validation"
PROBABILITIES = ".npz"


@dataclass(frozen=True)
class TrainedFolds:
    """One model of a node: all folds of a configuration.

    Attributes:
        model: what it is.
        run: the run's folder, or the node's, that it was found in.
        node: name of the node.
        folder: nnU-Net's folder of the model.
        dataset: name of nnU-Net's dataset.
        dataset_json: nnU-Net's ``dataset.json``.
        plans: nnU-Net's plans.
        references: folder of the reference segmentations.
        folds: trained folds.
        personal: whether it is the node's own, fine-tuned or Ditto's, beside that of the federation.
    """

    model: Model
    run: Path
    node: str
    folder: Path
    dataset: str
    dataset_json: dict[str, Any]
    plans: dict[str, Any]
    references: Path
    folds: tuple[int, ...]
    personal: bool = False

    @property
    def where(self) -> str:
        """Which model, for errors."""
        return f"{self.model.configuration} of node {self.node} in {self.run}"


def find_models(run: Path, personal: bool = False) -> dict[str, TrainedFolds]:
    """Each training node of a run to its model; whose folder a node's own is, is not known.

    Args:
        run: folder of a run, or one node's folder in it.
        personal: the models that are the nodes' own, fine-tuned or Ditto's.

    Raises:
        DataError: there is no model, a node has several, or a file of one cannot be read.
    """
    by_node: dict[str, list[ModelFolder]] = {}
    for folder in find_folders(run, personal):
        by_node.setdefault(folder.node or UNNAMED, []).append(folder)
    for node, folders in by_node.items():
        if len(folders) > 1:
            names = join_first([folder.path.name for folder in folders], 3)
            raise DataError(f"node {node} in {run} has {len(folders)} models ({names}); give one run of each")
    return {node: _read_model(run, node, folder, personal) for node, (folder,) in by_node.items()}


def _read_model(run: Path, node: str, folder: ModelFolder, personal: bool) -> TrainedFolds:
    try:
        model = Model(trainer=folder.trainer, plans=folder.plans, configuration=folder.configuration)
    except ValidationError:
        raise DataError(f"node {node}: {folder.path} is not named TRAINER__PLANS__CONFIGURATION") from None
    dataset_json, plans = read_description(folder.path, node), read_json(folder.path / "plans.json", node)
    check_readable(plans, dataset_json, folder)
    path = folder.path.resolve()
    of_node = replace(folder, path=path).node_folder  # that has nnUNet_preprocessed
    return TrainedFolds(
        model,
        run,
        node,
        folder.path,
        path.parent.name,
        dataset_json,
        plans,
        of_node / "nnUNet_preprocessed" / path.parent.name / REFERENCES,
        tuple(sorted(int(fold) for fold in folder.folds if fold.isdecimal())),
        personal,
    )


def held_out_files(found: TrainedFolds, folds: Sequence[int]) -> dict[str, Path]:
    """Identifier of each case that the folds hold out, to its segmentation.

    Args:
        found: the node's model.
        folds: folds to look at.

    Raises:
        DataError: a fold is not finished, lacks a segmentation, or has one of a case of another fold; names them.
    """
    ending = found.dataset_json["file_ending"]
    expected = _expected(found)
    files: dict[str, Path] = {}
    for fold in folds:
        if fold not in found.folds:
            raise DataError(
                f"fold {fold} of {found.where} is not finished; train it (continue={found.run}), or choose others with "
                "--fold"
            )
        folder = found.folder / f"fold_{fold}" / VALIDATION
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        here = {path.name.removesuffix(ending): path for path in paths if path.name.endswith(ending)}
        held_out = expected[fold] if expected is not None and fold < len(expected) else set(here)
        if missing := sorted(held_out - here.keys()):
            raise DataError(
                f"fold {fold} of {found.where} has no segmentation of {join_first(missing, 3)}, which it holds out; "
                f"let it be scored (continue={found.run})"
            )
        if trained_on := sorted(here.keys() - held_out):
            raise DataError(
                f"fold {fold} of {found.where} has a segmentation of {join_first(trained_on, 3)}, which it does not "
                f"hold out; remove it from {folder}"
            )
        if twice := sorted(files.keys() & here.keys()):
            raise DataError(f"{found.where}: two of its folds have segmentations of {join_first(twice, 3)}")
        files |= here
    return files


def check_alike(first: TrainedFolds, other: TrainedFolds) -> None:
    """Check that two models of a node are two, and segment the same.

    Raises:
        DataError: they have one name, or other labels; names them.
    """
    if first.model == other.model:
        raise DataError(
            f"{first.run} and {other.run} are both of {first.model.identifier}; give one run of each configuration"
        )
    for field in ("labels", "regions_class_order", "file_ending", "annotated"):
        ours, theirs = (json.dumps(found.dataset_json.get(field)) for found in (first, other))
        if ours != theirs:
            raise DataError(
                f"{field} of {first.where} is {ours}, that of {other.where} {theirs}; they must be the same"
            )


def _expected(found: TrainedFolds) -> list[set[str]] | None:
    """Cases that each fold holds out, by nnU-Net's splits; None where these are not there."""
    path = found.references.parent / SPLITS_FILE
    if not path.is_file():
        return None
    splits = read_json(path, found.node, list)
    try:
        return [set(split["val"]) - set(split["train"]) for split in splits]
    except (TypeError, KeyError):
        raise DataError(f"node {found.node}: {path} is no list of folds with train and val") from None


def nodes_of(runs: Sequence[Path], personal: bool = False) -> dict[str, list[TrainedFolds]]:
    """Node to its models in all runs, in nnU-Net's order of configurations.

    Args:
        runs: folders of runs; or, of one node, its folders in them, since a hospital's are named by runs.
        personal: the models that are the nodes' own, fine-tuned or Ditto's.

    Raises:
        DataError: a node has no model in one of the runs, two of one name, or models of other labels.
    """
    found = [find_models(run, personal) for run in runs]
    for run, models in zip(runs, found, strict=True):
        for other, others in zip(runs, found, strict=True):
            if lacking := sorted(others.keys() - models.keys()):
                raise DataError(f"{run} has no finished fold of node {join_first(lacking, 3)}, which {other} has")
    by_node = {node: sorted((models[node] for models in found), key=lambda one: one.model.place) for node in found[0]}
    for models_of_node in by_node.values():
        for first, second in combinations(models_of_node, 2):
            check_alike(first, second)
    return by_node
