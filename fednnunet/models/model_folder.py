"""Folders ``trainer__plans__configuration`` of nnU-Net's results: finding them below others, and choosing one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednnunet.errors import DataError
from fednnunet.run_files import PERSONAL_RESULTS
from fednnunet.training.final_checkpoint import FINAL

PLACES = ("", "*__*__*", "*/*__*__*", "{results}/*/*__*__*", "nodes/*/{results}/*/*__*__*")
"""Where folders of models lie: the source is one, or holds them as a dataset, nnU-Net's results, a node, a run."""
RESULTS = Path("nnUNet_results")
NEEDED = ("plans.json", "dataset.json")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with at least one finished fold.

    Attributes:
        path: the folder, on disk or in a zip.
        node: whose it is; empty outside a run.
        trainer: name of the trainer.
        plans: name of the plans.
        configuration: nnU-Net's configuration.
        folds: finished ones, sorted.
        source: what ``path`` is in, for errors.
    """

    path: Path
    node: str
    trainer: str
    plans: str
    configuration: str
    folds: tuple[str, ...]
    source: str = ""

    @property
    def where(self) -> str:
        """For errors."""
        return f"{self.source}{self.path}" + f" (node {self.node})" * bool(self.node)

    @property
    def node_folder(self) -> Path:
        """The node's folder of the run, of a model of a run."""
        above = self.path.parents[2]
        return above.parent if above.name == PERSONAL_RESULTS.parts[0] else above

    @property
    def is_personal(self) -> bool:
        """Whether the model of a run is the node's own, beside that of the federation."""
        return self.path.parents[1] == self.node_folder / PERSONAL_RESULTS


def as_model(path: Path, node: str, fold_names: Iterable[str]) -> ModelFolder | None:
    """The model of a folder by its name and those of its folds' folders; None where they are no model's."""
    parts = path.name.split("__")
    folds = [match[1] for name in fold_names if (match := re.fullmatch(r"fold_(\d{1,3}|all)", name))]
    if len(parts) != 3 or not folds:
        return None
    trainer, plans, configuration = parts
    ordered = tuple(sorted(folds, key=lambda fold: (len(fold), fold)))
    return ModelFolder(path, node, trainer, plans, configuration, ordered)


def find_folders(source: Path, personal: bool = False) -> list[ModelFolder]:
    """Every model below a folder, of every node.

    Args:
        source: the folder.
        personal: below a run or a node, the models that are the nodes' own: fine-tuned, or Ditto's.

    Raises:
        DataError: there is none.
    """
    if not source.is_dir():
        raise DataError(f"there is no file or folder {source}; give a model's zip, a run, or nnU-Net's results")
    places = [place.format(results=PERSONAL_RESULTS if personal else RESULTS) for place in PLACES]
    candidates = [path for place in places for path in (sorted(source.glob(place)) if place else [source.resolve()])]
    found = []
    for path in candidates:
        if all((path / name).is_file() for name in NEEDED):
            within = path.relative_to(source).parts if path.is_relative_to(source) else ()
            node = within[1] if within[:1] == ("nodes",) else ""
            finished = [checkpoint.parent.name for checkpoint in path.glob(f"fold_*/{FINAL}")]
            if (model := as_model(path, node, finished)) is not None:
                found.append(model)
    if found:
        return found
    if personal:
        raise DataError(
            f"{source} holds no finished model of a node's own, as strategy.fine_tune_epochs and strategy=ditto train"
        )
    if any(source.glob("nodes/*/nnUNet_results/*/*/fold_*")):
        raise DataError(f"the run {source} has finished no fold yet; go on with it: python train.py continue={source}")
    if (source / "config.json").is_file() and not any(source.glob("nodes/*/nnUNet_results")):
        raise DataError(
            f"the run {source} holds no model: across hospitals, each is on its node's own machine, in runs/ of its "
            "work folder"
        )
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
    if not asked:
        raise DataError(f"{where}: no fold is asked for; finished: {', '.join(there)}")
    return tuple(fold for fold in there if fold in asked)
