"""Which models of a source are handed over: one that all nodes share, a node's, or each node's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fednnunet.errors import DataError
from fednnunet.listing import join_nodes
from fednnunet.models.model_folder import ModelFolder, choose_folder, choose_folds, find_folders
from fednnunet.models.shared_model import is_shared

MODEL_IN_NODE = 3
"""Folders from a model's folder to its node's: dataset, results, node; one more for a node's own models."""


@dataclass(frozen=True)
class ChosenModel:
    """A model that will be handed over.

    Attributes:
        folder: where it lies.
        folds: that are taken.
        node: whose it is; None where all nodes have the same, or outside a run.
        run: folder of the run that it is of; None outside one.
    """

    folder: ModelFolder
    folds: tuple[str, ...]
    node: str | None
    run: Path | None


def choose_models(
    source: Path,
    node: str | None,
    configuration: str | None,
    folds: Sequence[str] | None,
    each: bool,
    personal: bool = False,
) -> list[ChosenModel]:
    """The models of a folder to hand over.

    Args:
        source: a run's folder, a node's, or a results folder of nnU-Net.
        node: whose; None for the one that all share, or each one's.
        configuration: nnU-Net's; needed where there are several.
        folds: None for all that are finished.
        each: whether there may be one of each node.
        personal: the nodes' own models, fine-tuned or Ditto's, and not the federation's.

    Raises:
        DataError: there is none, or nodes have different ones and not each is wanted; says what to do.
    """
    found = find_folders(source, personal)
    nodes = list(dict.fromkeys(folder.node for folder in found))
    if node is not None or len(nodes) == 1:
        folder = choose_folder(found, source, node, configuration)
        return [_chosen(folder, folds)]
    of_nodes = [choose_folder(found, source, one, configuration) for one in nodes]
    chosen = [_chosen(folder, folds) for folder in of_nodes]
    if is_shared(of_nodes, chosen[0].folds) and len({one.folds for one in chosen}) == 1:
        first = chosen[0]
        return [ChosenModel(first.folder, first.folds, None, first.run)]
    if each:
        return chosen
    raise DataError(
        f"{source}: nodes have different models ({join_nodes(nodes)}); choose one, --node {nodes[0]}, or give a folder "
        "instead of FILE.zip, for a zip of each"
    )


def _chosen(folder: ModelFolder, folds: Sequence[str] | None) -> ChosenModel:
    parents = folder.path.resolve().parents
    kept = choose_folds(folder.folds, folds, folder.where)
    for depth in (MODEL_IN_NODE, MODEL_IN_NODE + 1):
        if len(parents) > depth + 1 and parents[depth].name == "nodes":
            return ChosenModel(folder, kept, parents[depth - 1].name, parents[depth + 1])
    return ChosenModel(folder, kept, None, None)
