"""What there is to choose among: scores of candidates, and where their models lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fednnunet.models.model_folder import RESULTS, ModelFolder
from fednnunet.reporting.scores import Scores
from fednnunet.reporting.selected import is_beside_shared
from fednnunet.run_files import FINE_TUNED, PERSONAL_RESULTS
from fednnunet.training.final_checkpoint import FINAL

HERE = "this hospital"
"""Name of the hospital whose own folders are given, where they have no name in common."""


Models = Mapping[tuple[str, int, str], Sequence[ModelFolder]]
"""Candidate, seed and hospital to its models, where they are on this disk; runs of single folds have a folder each."""


@dataclass(frozen=True)
class Sources:
    """What there is to choose among.

    Attributes:
        dataset: name of the dataset; of a hospital's own folders that of nnU-Net.
        scores: scores of all candidates.
        training: hospitals.
        models: where models are.
    """

    dataset: str
    scores: Scores
    training: Sequence[str]
    models: Models


def model_folder(node_folder: Path, personal: bool = False, configuration: str | None = None) -> ModelFolder | None:
    """The folder of the models that a run has trained at a node; None where there is none, or no one of them.

    Args:
        node_folder: the node's folder of the run.
        personal: the second model that the run gives the node.
        configuration: nnU-Net's configuration; None for the only one.
    """
    results = node_folder / (PERSONAL_RESULTS if personal else RESULTS)
    ending = configuration or "*"
    paths = [path for path in sorted(results.glob(f"*/*__*__{ending}")) if any(path.glob("fold_*"))]
    if len(paths) != 1 or paths[0].name.count("__") != 2:
        return None
    trainer, plans, of_model = paths[0].name.split("__")
    folds = tuple(sorted(path.parent.name.removeprefix("fold_") for path in paths[0].glob(f"fold_*/{FINAL}")))
    return ModelFolder(paths[0], node_folder.name, trainer, plans, of_model, folds)


def is_second(candidate: str, candidates: Collection[str]) -> bool:
    """Whether a candidate's models are the node's own, which lie apart from those of the federation.

    >>> names = ["ffe", "ffe fine-tuned", "ditto", "ditto shared"]
    >>> [is_second(name, names) for name in names]
    [False, True, True, False]
    """
    return FINE_TUNED in candidate.split(" ") or is_beside_shared(candidate, candidates)


def scores_of(rows: pd.DataFrame) -> Scores:
    """Scores of cases: columns ``strategy``, ``node``, ``seed``, ``fold``, ``case``, ``dsc``."""
    no_means = pd.DataFrame(columns=["strategy", "node", "seed", "fold", "n_cases", "dsc", "hd95", "n_empty"])
    return Scores(rows, no_means)
