"""Scores of held-out cases on a node's own disk: nnU-Net's ``summary.json`` of each fold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from fednnunet.errors import DataError
from fednnunet.exchange.messages import Kind
from fednnunet.models.fold_digests import SUMMARY
from fednnunet.models.model_folder import RESULTS, ModelFolder
from fednnunet.run_files import FINE_TUNED, PERSONAL_RESULTS, SHARED
from fednnunet.selection.sources import HERE, Sources, model_folder, scores_of

T = TypeVar("T")
REQUESTS = "requests.json"
"""In a node's folder: the requests that it had before training."""


def read_disk_sources(named: Sequence[tuple[str, Path]]) -> Sources:
    """Candidates of a node's folders of runs.

    Case names are read to pair the cases; they are in nothing that is written.

    Args:
        named: name and folder of each run.

    Raises:
        DataError: a folder holds no scored fold, or a file is not what nnU-Net writes; names it.
    """
    folders = {folder.resolve().name for _, folder in named}
    node = folders.pop() if len(folders) == 1 else HERE
    tables: list[pd.DataFrame] = []
    models: dict[tuple[str, int, str], list[ModelFolder]] = {}
    datasets: set[str] = set()
    for name, folder in named:
        names = (f"{name} {SHARED}", name) if is_ditto(folder) else (name, f"{name} {FINE_TUNED}")
        for candidate, personal in zip(names, (False, True), strict=True):
            found = model_folder(folder, personal)
            if found is None:
                if not personal:
                    raise DataError(f"{folder} must hold one folder {RESULTS}/DATASET/trainer__plans__configuration")
                continue
            if (candidate, 0, node) in models:
                raise DataError(f"{candidate} is named twice; give each folder a name of its own")
            tables.append(read_scores(found).assign(strategy=candidate, node=node, seed=0))
            models[candidate, 0, node] = [found]
            datasets.add(found.path.parent.name)
    if len(datasets) > 1:
        raise DataError(f"folders of unlike datasets: {', '.join(sorted(datasets))}; choose among runs of the same")
    return Sources(datasets.pop(), scores_of(pd.concat(tables, ignore_index=True)), [node], models)


def is_ditto(folder: Path) -> bool:
    """Whether the node trained its own network beside the shared one, by the request that it keeps.

    Raises:
        DataError: the node's own models are there, and the request is not.
    """
    if not (folder / PERSONAL_RESULTS).is_dir():
        return False
    path = folder / REQUESTS
    try:
        asked = json.loads(json.loads(path.read_text(encoding="utf-8"))[Kind.PREPROCESS])["personal"]
        return asked["tie"] is not None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not say how {folder / PERSONAL_RESULTS} came to be: {error}") from None


def read_scores(models: ModelFolder) -> pd.DataFrame:
    """Mean DSC over labels of each held-out case: columns ``fold``, ``case`` (its name) and ``dsc``.

    Where prediction and reference are both empty nnU-Net says NaN, and this package 1 (``evaluation/functional.py``).

    Raises:
        DataError: no fold has a summary, or a case is held out twice.
    """
    rows = []
    for fold, path in summaries(models).items():
        for case, dsc in read_summary(path).items():
            rows.append({"fold": fold, "case": case, "dsc": dsc})
    if not rows:
        raise DataError(f"{models.path} holds no fold_*/{SUMMARY}; folds are scored when they have been trained")
    table = pd.DataFrame(rows)
    if table["case"].duplicated().any():
        raise DataError(f"{models.path} holds the same case out in two folds; their splits differ, train them again")
    return table


def summaries(models: ModelFolder) -> dict[str, Path]:
    """Fold to the summary of its held-out cases; not ``all``, which nnU-Net scores on what it has trained on."""
    paths = {path.parents[1].name.removeprefix("fold_"): path for path in models.path.glob(f"fold_*/{SUMMARY}")}
    return {fold: paths[fold] for fold in sorted(paths) if fold != "all"}


def read_summary(path: Path) -> dict[str, float]:
    """File name of a case to its mean DSC over labels or regions.

    Raises:
        DataError: it is no ``summary.json`` of nnU-Net; names it and what is wrong.
    """
    return _read_cases(path, _mean_dsc)


def read_summary_labels(path: Path) -> dict[str, list[str]]:
    """File name of a case to the labels or regions that it is scored by, as nnU-Net writes them.

    Raises:
        DataError: as :func:`read_summary`.
    """
    return _read_cases(path, list)


def _read_cases(path: Path, read: Callable[[dict[str, dict[str, float]]], T]) -> dict[str, T]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {_file_name(entry): read(entry["metrics"]) for entry in content["metric_per_case"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no summary of nnU-Net that can be read: {type(error).__name__}: {error}") from None


def _file_name(entry: dict[str, Any]) -> str:
    return str(entry["reference_file"]).replace("\\", "/").rpartition("/")[2]


def _mean_dsc(metrics: dict[str, dict[str, float]]) -> float:
    values = [1.0 if _is_empty(label) else float(label["Dice"]) for label in metrics.values()]
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError("a case whose Dice is not between 0 and 1")
    return math.fsum(values) / len(values)


def _is_empty(label: dict[str, float]) -> bool:
    return label["n_pred"] == 0 and label["n_ref"] == 0
