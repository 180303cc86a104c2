"""Read the folder of a run, finished or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.errors import DataError, first_problem, one_line
from fednnunet.exchange.data_notes import DataNote
from fednnunet.exchange.messages import ENSEMBLE
from fednnunet.files import write_atomically
from fednnunet.models.json_file import read_json
from fednnunet.reporting.annotation import Annotation, read_annotation
from fednnunet.reporting.scores import split_means
from fednnunet.run_files import (
    CASE_COLUMNS,
    CASES_FILE,
    CHANNEL_COLUMNS,
    CHANNELS_FILE,
    CONFIG_FILE,
    DATA_NOTE_COLUMNS,
    DATA_NOTES_FILE,
    ERROR_FILE,
    HYDRA_CONFIG_FILE,
    LABELS_FILE,
    OVERRIDES_FILE,
    PLANS_FILE,
    ROUND_COLUMNS,
    ROUND_MEAN_COLUMNS,
    ROUND_MEANS_FILE,
    ROUNDS_FILE,
    RUN_FILE,
)

_TEXT = ["strategy", "node", "model", "fold", "label", "empty", "kind"]
_NOT_IN_NAME = (
    "strategy",
    "seed",
    "fold",
    "logger",
    "node",
    "federation",
    "hydra",
    "paths",
    "hydra/launcher",
)
OF_STRATEGY = "strategy."


@dataclass(frozen=True)
class Run:
    """One run of one strategy.

    Attributes:
        folder: folder of the run.
        strategy: name in tables and figures: the strategy, and what else a sweep varied.
        info: content of ``run.json``; of a run that did not end, what its ``config.json`` says of the same.
        ended: whether the run recorded its end.
        plans: node to nnU-Net's plans.
        cases: rows of cases in ``cases.csv``, with a column ``seed``; folds are text.
        means: its rows of means, and of scores that stay at their nodes; the same columns, and ``n_cases``.
        rounds: ``rounds.csv``, with columns ``fold`` and ``seed``.
        round_means: ``round_means.csv``, with the same columns.
        data_notes: node and what people should know of its images.
        annotation: who annotates what, where nodes may have unlike labels.
        channels: who has which channel, where nodes may have unlike ones.
        overlays: centre to number of the case to file.
        config: composed configuration as YAML; empty if there is none.
        overrides: key to value of what was changed on the command line.
        error: why the run failed, if known.
    """

    folder: Path
    strategy: str
    info: dict[str, Any]
    ended: bool
    plans: dict[str, dict[str, Any]]
    cases: pd.DataFrame
    means: pd.DataFrame
    rounds: pd.DataFrame
    round_means: pd.DataFrame
    data_notes: list[tuple[str, str]]
    annotation: Annotation | None
    channels: Annotation | None
    overlays: dict[str, dict[int, Path]]
    config: str
    overrides: dict[str, str]
    error: str = ""

    @property
    def seed(self) -> int:
        """Random seed of the run; 0 if unknown."""
        return int(self.info.get("seed", 0))

    @property
    def folds(self) -> list[str]:
        """Folds that the run should train; none if unknown."""
        chosen = self.info.get("fold", [])
        return [str(fold) for fold in (chosen if isinstance(chosen, list) else [chosen])]

    @property
    def scored_folds(self) -> list[str]:
        """Folds that have scores; all after the run's end."""
        scored = {fold for fold in (*self.cases["fold"], *self.means["fold"]) if fold != ENSEMBLE}
        return sorted(scored | set(self.folds if self.finished else ()))

    @property
    def has_scores(self) -> bool:
        """Whether nodes have told scores, or that they keep them."""
        return not (self.cases.empty and self.means.empty)

    @property
    def finished(self) -> bool:
        """Whether the run recorded its end, and has scores if there is anything to score."""
        return self.ended and (self.has_scores or self.info.get("fold") == "all")

    @property
    def problem(self) -> str | None:
        """What is missing of the run's results, in one line; None if nothing is."""
        if self.finished:
            on_all = "it trained on every case (fold=all), and there is no external centre"
            return None if self.has_scores else f"{self.folder.name} has no scores: {on_all}"
        trained = int(self.rounds["round"].max()) if not self.rounds.empty else 0
        progress = f"it trained {trained} round{'s' * (trained != 1)}" if trained else "it trained no round"
        if len(self.folds) > 1 and self.scored_folds:
            progress = f"it finished fold{'s' * (len(self.scored_folds) != 1)} {', '.join(self.scored_folds)}"
        scores = "" if self.has_scores else " and has no scores"
        return f"{self.folder.name} did not finish: {progress}{scores}" + (f" ({self.error})" if self.error else "")


def read_run(folder: Path) -> Run:
    """Read a run folder; what is missing stays empty.

    Raises:
        DataError: a file exists and cannot be read, or its seed is no number; names it.
    """
    final = _read_json(folder / RUN_FILE)
    info = final or _info_from_config(_read_json(folder / CONFIG_FILE))
    seed = info.get("seed", 0)
    if not isinstance(seed, int):
        file = folder / (RUN_FILE if final else CONFIG_FILE)
        raise DataError(f"{file}: seed must be a whole number, not {one_line(repr(seed))}")
    cases, means = split_means(read_csv(folder / CASES_FILE, CASE_COLUMNS))
    rounds = read_csv(folder / ROUNDS_FILE, ROUND_COLUMNS)
    round_means = read_csv(folder / ROUND_MEANS_FILE, ROUND_MEAN_COLUMNS)
    requested = info.get("fold", 0)  # rounds.csv names the fold where there are several
    only = str(requested[0] if isinstance(requested, list) else requested)
    strategies = [*cases["strategy"].unique(), *means["strategy"].unique(), *rounds["strategy"].unique()]
    config = folder / HYDRA_CONFIG_FILE
    return Run(
        folder=folder,
        strategy=str(info.get("strategy", strategies[0] if strategies else folder.name)),
        info=info,
        ended=bool(final),
        plans=_read_json(folder / PLANS_FILE),
        cases=cases.assign(seed=seed),
        means=means.assign(seed=seed),
        rounds=rounds.assign(fold=rounds.get("fold", only), seed=seed),
        round_means=round_means.assign(fold=round_means.get("fold", only), seed=seed),
        data_notes=_read_data_notes(folder / DATA_NOTES_FILE),
        annotation=read_annotation(folder / LABELS_FILE),
        channels=read_annotation(folder / CHANNELS_FILE, CHANNEL_COLUMNS),
        overlays=_find_overlays(folder),
        config=config.read_text() if config.is_file() else "",
        overrides=_read_overrides(folder / OVERRIDES_FILE),
        error=error.read_text() if (error := folder / ERROR_FILE).is_file() else "",
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs of a sweep; names of strategies include what else it varied beside strategy, seed and fold.

    An option of a strategy is in the names where runs of that strategy differ in it.
    """
    runs = [read_run(folder) for folder in folders]
    named = []
    for run in runs:
        extra = "".join(f" {key}={run.overrides[key]}" for key in _varied(run, runs))
        names = ("cases", "means", "rounds", "round_means")
        tables = {name: getattr(run, name) for name in names}
        tables = {name: table.assign(strategy=table["strategy"] + extra) for name, table in tables.items()}
        named.append(replace(run, strategy=f"{run.strategy}{extra}", **tables))
    return named


def _varied(run: Run, runs: Sequence[Run]) -> list[str]:
    """Keys of a run by which it is told from others."""
    varied = []
    for key in sorted(run.overrides):
        of_strategy = key.startswith(OF_STRATEGY)
        if key.split(".")[0] in _NOT_IN_NAME and not of_strategy:
            continue
        others = (one for one in runs if not of_strategy or one.strategy == run.strategy)
        if any(one.overrides.get(key) != run.overrides[key] for one in others):
            varied.append(key)
    return varied


def merge(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all runs in one table; the column ``seed`` stays if there are several."""
    filled = [frame for frame in frames if not frame.empty]
    merged = pd.concat(filled, ignore_index=True) if filled else frames[0]
    return merged if merged["seed"].nunique() > 1 else merged.drop(columns="seed")


def merge_rounds(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """As :func:`merge`; the column ``fold`` also stays if there are several."""
    merged = merge(frames)
    return merged if merged["fold"].astype(str).nunique() > 1 else merged.drop(columns="fold")


def node_order(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Training and external nodes, in the order of the configuration."""
    external = _ordered(node for run in runs for node in run.info.get("external", []))
    training = _ordered(node for run in runs for node in run.info.get("nodes", []))
    scored = _ordered(node for run in runs for node in (*run.cases["node"], *run.means["node"]))
    training = _ordered([*training, *(node for node in scored if node not in external)])
    if POOLED_NODE not in scored:
        training = [node for node in training if node != POOLED_NODE]
    return training, external


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table of a run; a missing file is an empty table.

    Raises:
        DataError: not CSV, or a column is missing; names file and column.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    try:
        # A node may be called NA: only numbers may be missing.
        frame = pd.read_csv(
            path,
            dtype=dict.fromkeys(_TEXT, str),
            keep_default_na=False,
            na_values={name: ["", "nan"] for name in columns if name not in _TEXT},
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable table: {error}") from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(f"{path} lacks the column {missing[0]}")
    return frame


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table atomically; numbers keep all their digits."""
    write_atomically(path, frame.to_csv(index=False))


def brief_plans(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Properties that distinguish plans: batch size, patch (pixels), spacing (mm), stages, features per stage.

    Raises:
        DataError: the plans have no such configuration.
    """
    configurations = plans.get("configurations", {})
    chosen = configurations.get(configuration)
    if not chosen:
        raise DataError(f"plans.json has no configuration {configuration}")
    if "inherits_from" in chosen:  # the cascade is 3d_fullres with another input
        chosen = {**configurations[chosen["inherits_from"]], **chosen}
    architecture = chosen["architecture"]["arch_kwargs"]
    return {
        "batch_size": chosen["batch_size"],
        "patch_size": list(chosen["patch_size"]),
        "spacing": [round(float(value), 3) for value in chosen["spacing"]],
        "n_stages": architecture["n_stages"],
        "features_per_stage": list(architecture["features_per_stage"]),
    }


def _read_json(path: Path) -> dict[str, Any]:
    """What a run has written; nothing where it has not."""
    return read_json(path) if path.is_file() else {}


def _info_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` would say about a run, from the flat keys of its ``config.json``."""
    names = {
        "strategy": "strategy.name",
        "dataset": "dataset.name",
        "configuration": "configuration",
        "distance_unit": "evaluation.distance_unit",
        "seed": "seed",
        "fold": "fold",
    }
    asked = {name: config[key] for name, key in names.items() if key in config}
    if centres := config.get("dataset.centres"):
        for name, external in (("nodes", False), ("external", True)):
            asked[name] = [centre["name"] for centre in centres if centre.get("external", False) is external]
    return asked


def _read_overrides(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = [line.removeprefix("- ").strip().strip("'\"") for line in path.read_text().splitlines()]
    pairs = [line.lstrip("+~").partition("=") for line in lines if "=" in line]
    return {key: value for key, _, value in pairs}


def _read_data_notes(path: Path) -> list[tuple[str, str]]:
    try:
        rows = read_csv(path, DATA_NOTE_COLUMNS).to_dict("records")
        return [(str(row.pop("node")), str(DataNote.model_validate(row))) for row in rows]
    except ValidationError as error:
        raise DataError(f"{path} is not readable: {first_problem(error, 'a row')}") from None


def _find_overlays(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("nodes/*/overlays/*__*.npz")):
        centre, _, case = path.stem.rpartition("__")
        if case.isdigit():
            found.setdefault(centre, {})[int(case)] = path
    return found


def _ordered(names: Any) -> list[str]:
    return list(dict.fromkeys(names))
