"""Open a trained model: of a run, or in a results folder of nnU-Net."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednnunet.errors import DataError, one_line
from fednnunet.models.postprocessing import POSTPROCESSING_FILE, Postprocessing
from fednnunet.models.trained_model import TrainedModel, described
from fednnunet.training.final_checkpoint import FINAL

if TYPE_CHECKING:
    import torch

PLACES = ("", "*__*__*", "*/*__*__*", "nnUNet_results/*/*__*__*", "nodes/*/nnUNet_results/*/*__*__*")
"""Where folders of models lie: the source is one, or holds them as a dataset, nnU-Net's results, a node, a run."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that torch's wrappers give to layers; nnU-Net removes them where it saves, other tools may not."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder ``trainer__plans__configuration`` with at least one finished fold.

    Attributes:
        path: the folder.
        node: whose it is; empty outside a run.
        trainer: name of the trainer.
        configuration: nnU-Net's configuration.
        folds: finished ones, sorted.
    """

    path: Path
    node: str
    trainer: str
    configuration: str
    folds: tuple[str, ...]

    @property
    def where(self) -> str:
        """For errors."""
        return f"{self.path}" + f" (node {self.node})" * bool(self.node)


def open_model(
    source: Path, *, node: str | None = None, configuration: str | None = None, folds: Sequence[str] | None = None
) -> TrainedModel:
    """Open a trained model; weights are read when they are asked for.

    Args:
        source: a run's folder, a node's, or a results folder of nnU-Net: of all datasets, of one, or of one model.
        node: which node's; needed where there are several.
        configuration: which of nnU-Net's configurations; needed where there are several.
        folds: folds to use; all that are finished if None, without ``all`` where there are others.

    Raises:
        DataError: there is no such model, or more than one; or a file cannot be read. In one line, with what is there.
    """
    found = choose_folder(find_folders(source), source, node, configuration)
    chosen = choose_folds(found.folds, folds, found.where)
    plans, dataset_json = (_read_json(found.path / name) for name in ("plans.json", "dataset.json"))
    first = read_checkpoint(found.path / f"fold_{chosen[0]}" / FINAL)
    axes = first.get("inference_allowed_mirroring_axes")

    def read(fold: str) -> dict[str, torch.Tensor]:
        return weights_of(read_checkpoint(found.path / f"fold_{fold}" / FINAL))

    return TrainedModel(
        plans=plans,
        dataset_json=described(dataset_json),
        configuration=found.configuration,
        trainer=found.trainer,
        folds=chosen,
        mirror_axes=None if axes is None else tuple(int(axis) for axis in axes),
        postprocessing=_read_postprocessing(found.path, dataset_json),
        where=found.where,
        read_weights=read,
    )


def find_folders(source: Path) -> list[ModelFolder]:
    """Every model below a folder, of every node.

    Raises:
        DataError: there is none.
    """
    if not source.is_dir():
        raise DataError(f"there is no folder {source}; give that of a run, or of nnU-Net's results")
    candidates = [path for place in PLACES for path in sorted(source.glob(place) if place else [source.resolve()])]
    found = [model for path in candidates if (model := _as_model(path, source)) is not None]
    if found:
        return found
    if (source / "nodes").is_dir() and any((source / "nodes").glob("*/nnUNet_results/*/*/fold_*")):
        raise DataError(f"the run {source} has finished no fold yet; go on with it: python train.py continue={source}")
    if (source / "config.json").is_file() and not any(source.glob("nodes/*/nnUNet_results")):
        raise DataError(f"the run {source} holds no model; across hospitals, each is at its node, in its work folder")
    raise DataError(f"{source} holds no {FINAL} where a run of this package or nnU-Net writes it")


def choose_folder(
    folders: Sequence[ModelFolder], source: Path, node: str | None, configuration: str | None
) -> ModelFolder:
    """The one model of a node and a configuration.

    Raises:
        DataError: there is none, or more than one; lists what is there.
    """
    nodes = sorted({folder.node for folder in folders})
    if node is not None:
        if node not in nodes:
            known = ", ".join(filter(None, nodes)) or "none: it is no run's folder"
            raise DataError(f"{source} has no finished fold of node {node}; nodes there: {known}")
        folders = [folder for folder in folders if folder.node == node]
    elif len(nodes) > 1:
        raise DataError(f"{source} has models of several nodes, {', '.join(nodes)}; say which: --node {nodes[0]}")
    configurations = sorted({folder.configuration for folder in folders})
    if configuration is not None:
        if configuration not in configurations:
            raise DataError(
                f"{source} has no finished fold of configuration {configuration}; there: {', '.join(configurations)}"
            )
        folders = [folder for folder in folders if folder.configuration == configuration]
    elif len(configurations) > 1:
        raise DataError(
            f"{source} has models of the configurations {', '.join(configurations)}; "
            f"say which: --configuration {configurations[0]}"
        )
    if len(folders) > 1:
        named = ", ".join(f"{folder.path.parent.name}/{folder.path.name}" for folder in folders)
        raise DataError(
            f"{source} has several models of configuration {folders[0].configuration}: {named}; give the folder of one"
        )
    return folders[0]


def choose_folds(there: Sequence[str], asked: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Folds to use of those that are there: those asked for; if None, all but ``all``, as nnU-Net does.

    Raises:
        DataError: one that is asked for is not there.
    """
    if asked is None:
        return tuple(fold for fold in there if fold != "all") or tuple(there)
    for fold in asked:
        if fold not in there:
            raise DataError(f"{where} has not finished fold {fold}; finished: {', '.join(there)}")
    return tuple(fold for fold in there if fold in asked)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint of nnU-Net, on the CPU; nothing in it is executed.

    Raises:
        DataError: it is damaged, or holds something else than tensors, numbers and text.
    """
    import torch

    from fednnunet.training.checkpoint_types import NUMBERS

    try:
        with torch.serialization.safe_globals(NUMBERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read as a checkpoint: {one_line(cause)[:200]}") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise DataError(f"{path} is not a checkpoint of nnU-Net: it has no network_weights")
    return checkpoint


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Layer to tensor, without the names of torch's wrappers."""
    weights = {}
    for name, tensor in checkpoint["network_weights"].items():
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        weights[name] = tensor
    return weights


def _as_model(path: Path, source: Path) -> ModelFolder | None:
    parts = path.name.split("__")
    if len(parts) != 3 or not all((path / name).is_file() for name in ("plans.json", "dataset.json")):
        return None
    folds = sorted(
        match[1]
        for checkpoint in path.glob(f"fold_*/{FINAL}")
        if (match := re.fullmatch(r"fold_(\d+|all)", checkpoint.parent.name))
    )
    if not folds:
        return None
    within = path.relative_to(source).parts if path.is_relative_to(source) else ()
    node = within[1] if within[:1] == ("nodes",) else ""
    return ModelFolder(path, node, parts[0], parts[2], tuple(sorted(folds, key=lambda fold: (len(fold), fold))))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {one_line(str(error))}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object")
    return content


def _read_postprocessing(folder: Path, dataset_json: Mapping[str, Any]) -> Postprocessing | None:
    path = folder / POSTPROCESSING_FILE
    if not path.is_file():
        return None
    found = Postprocessing.read(path)
    found.check_labels(dataset_json.get("labels", {}), str(path))
    return found
