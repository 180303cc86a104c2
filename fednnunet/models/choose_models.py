"""Which models of a source are handed over: one that all nodes share, a node's, or each node's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fednnunet.errors import DataError
from fednnunet.listing import join_nodes
from fednnunet.models.ensemble import Ensemble
from fednnunet.models.model_folder import ModelFolder, find_folders
from fednnunet.models.open_ensemble import Choice, FolderSource, choose
from fednnunet.models.shared_model import are_one

MODEL_IN_NODE = 3
"""Folders from a model's folder to its node's: dataset, results, node; one more for a node's own models."""


@dataclass(frozen=True)
class ChosenModel:
    """What will be handed over.

    Attributes:
        ensemble: the model; or several that are averaged.
        dataset: name of nnU-Net's folder of the dataset that it is in.
        node: whose it is; None where all nodes have the same, or outside a run.
        run: folder of the run that it is of, the first of several; None outside one.
    """

    ensemble: Ensemble
    dataset: str
    node: str | None
    run: Path | None


def choose_models(
    source: Path,
    node: str | None,
    configuration: str | None,
    folds: Sequence[str] | None,
    each: bool,
    personal: bool = False,
    stages: Sequence[Path] = (),
) -> list[ChosenModel]:
    """The models of a folder to hand over.

    Args:
        source: a run's folder, a node's, or a results folder of nnU-Net.
        node: whose; None for the one that all share, or each one's.
        configuration: nnU-Net's; None for the only one, or what ``inference_information.json`` decides.
        folds: None for all that are finished.
        each: whether there may be one of each node.
        personal: the nodes' own models, fine-tuned or Ditto's, and not the federation's.
        stages: further folders, in which the previous stage of a cascade is looked for.

    Raises:
        DataError: there is none, or nodes have different ones and not each is wanted; says what to do.
    """
    found = FolderSource(source, find_folders(source, personal))
    further = [folder for other in stages for folder in find_folders(other)]
    nodes = list(dict.fromkeys(folder.node for folder in found.folders))
    asked = [node] if node is not None or len(nodes) == 1 else nodes
    choices = [choose(found, one, configuration, folds) for one in asked]
    choices = [replace(one, beside=[*one.beside, *further]) for one in choices]
    return [chosen_model(choices[0])] if len(choices) == 1 else one_or_each(choices, each, str(source))


def one_or_each(choices: Sequence[Choice], each: bool, where: str) -> list[ChosenModel]:
    """What several nodes segment with: one for all where it is the same.

    Raises:
        DataError: nodes have different ones, and not each is wanted.
    """
    chosen = [chosen_model(choice) for choice in choices]
    if are_one([one.ensemble for one in chosen]):
        first = chosen[0]
        return [ChosenModel(first.ensemble, first.dataset, None, first.run)]
    if each:
        return chosen
    nodes = [str(one.node) for one in chosen]
    raise DataError(
        f"{where}: nodes have different models ({join_nodes(nodes)}); choose one, --node {nodes[0]}, or give a folder "
        "instead of FILE.zip, for a zip of each"
    )


def chosen_model(choice: Choice) -> ChosenModel:
    """A choice, opened, with whose it is."""
    folder = choice.models[0]
    node, run = owner_of(folder)
    return ChosenModel(choice.open(), folder.path.resolve().parent.name, node, run)


def owner_of(folder: ModelFolder) -> tuple[str | None, Path | None]:
    """Node and folder of the run that a model lies in; None outside of one."""
    parents = folder.path.resolve().parents
    for depth in (MODEL_IN_NODE, MODEL_IN_NODE + 1):
        if len(parents) > depth + 1 and parents[depth].name == "nodes":
            return parents[depth - 1].name, parents[depth + 1]
    return None, None
