"""From ``selection.json`` to the models that were chosen: each hospital's, an average, or folds of several runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from fednnunet.errors import DataError, first_problem
from fednnunet.exchange.message_fields import NodeName
from fednnunet.listing import join_all, join_nodes
from fednnunet.models.fold_digests import FoldDigests, check_folds
from fednnunet.models.json_file import read_json
from fednnunet.models.model_folder import NEEDED, ModelFolder, as_model
from fednnunet.models.open_ensemble import Choice
from fednnunet.models.open_model import open_folder
from fednnunet.models.trained_model import TrainedModel
from fednnunet.reporting.selected import SELECTED
from fednnunet.run_files import SELECTION_MODELS_FILE
from fednnunet.training.final_checkpoint import FINAL

AGAIN = "fednnunet select"


class _Stage(BaseModel):
    folder: Path
    folds: list[str]
    personal: bool
    digests: FoldDigests


class _Model(_Stage):
    first_stage: list[_Stage]


class _Selection(BaseModel):
    node: NodeName
    seed: int
    chosen: str
    reason: str
    num_cases: Annotated[int, Field(ge=0)]
    averaged: bool
    without_fold: dict[str, str]
    dsc: dict[str, float | None]
    models: list[_Model] | None


class _File(BaseModel):
    version: Literal[1]
    candidates: list[str]
    selections: list[_Selection]


@dataclass(frozen=True)
class HospitalChoice:
    """What a hospital chose, with the models of it.

    Attributes:
        node: the hospital.
        candidate: name of what it chose.
        choice: its models.
        of_one_run: whether it is one model of one run: not an average, nor folds of several runs.
        is_personal: whether the first model is the node's own, beside that of the federation.
        dsc: mean DSC of the candidate over the hospital's held-out cases; None where it is not known.
        num_cases: number of these cases.
        limit: what a card says of the choice.
    """

    node: str
    candidate: str
    choice: Choice
    of_one_run: bool
    is_personal: bool
    dsc: float | None
    num_cases: int
    limit: str


@dataclass(frozen=True)
class ReadChoices:
    """Choices whose models are on this disk, and what to know of the others."""

    choices: list[HospitalChoice]
    notes: list[str] = field(default_factory=list)


def read_choices(source: Path, node: str | None, seed: int | None, folds: Sequence[str] | None) -> ReadChoices:
    """The choices that ``fednnunet select`` wrote.

    Args:
        source: its folder, or ``selection.json`` in it.
        node: the hospital; None for all.
        seed: which seed's; needed where there are several.
        folds: folds to take; None for all that are finished.

    Raises:
        DataError: the file is none of ``fednnunet select``; there is no such choice; or models are not where it says.
    """
    path = source if source.name == SELECTION_MODELS_FILE else source / SELECTION_MODELS_FILE
    try:
        written = _File.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error, 'the selection')}; write it again: fednnunet select") from None
    chosen = written.selections
    if node is not None:
        chosen = [one for one in chosen if one.node == node]
        if not chosen:
            raise DataError(f"{path} has no choice of {node}, only of {join_nodes(_nodes(written.selections))}")
    seeds = sorted({one.seed for one in chosen})
    if seed is None and len(seeds) > 1:
        raise DataError(
            f"{path} has choices with the seeds {join_all(list(map(str, seeds)))}; say which: --seed {seeds[0]}"
        )
    chosen = [one for one in chosen if seed is None or one.seed == seed]
    here = [one for one in chosen if one.models]
    elsewhere = [one.node for one in chosen if not one.models]
    away = f"what {join_nodes(elsewhere)} chose is not on this disk: choose and export it at the hospital"
    if not here:
        raise DataError(f"{path}: {away}" if elsewhere else f"{path} has no choice with the seed {seed}")
    choices = [_read(one, path.parent, written.candidates, folds) for one in here]
    notes = [away] * bool(elsewhere)
    for one in here if folds is None else []:
        lost = sorted(one.without_fold.keys() - {fold for model in one.models or [] for fold in model.folds})
        if lost:
            notes.append(f"{one.node} chose {one.chosen} by fold {', '.join(lost)}, too, of which there was no model")
    return ReadChoices(choices, notes)


def _nodes(selections: Sequence[_Selection]) -> list[str]:
    return list(dict.fromkeys(one.node for one in selections))


def _read(one: _Selection, folder: Path, candidates: Sequence[str], folds: Sequence[str] | None) -> HospitalChoice:
    assert one.models, "on this disk"
    parts = [[model] for model in one.models] if one.averaged else [one.models]  # else folds of one model
    joined: dict[ModelFolder, Mapping[str, ModelFolder]] = {}
    models: list[ModelFolder] = []
    stages: dict[ModelFolder, ModelFolder] = {}
    for part in parts:
        models.append(_join([_folder(model, one.node, folder) for model in part], joined))
        if stage := [_folder(before, one.node, folder) for model in part for before in model.first_stage]:
            stages[models[-1]] = _join(list(dict.fromkeys(stage)), joined)
    digests: dict[Path, FoldDigests] = {}
    for model in _with_stages(one.models):
        digests.setdefault(_path(model, folder), {}).update(model.digests)
    choice = Choice(_Chosen(folder, models, joined, digests), models, [], folds, stages=stages)
    selected = one.dsc.get(SELECTED)
    limit = f"The federation's default, as its centre could not choose: {one.reason}."
    if not one.reason:
        limit = (
            f"Chosen among {', '.join(candidates)} by the {one.num_cases} held-out cases of its centre, on which it is "
            "scored, too: its score there flatters it."
        )
        if selected is not None:
            limit += f" Chosen and scored on apart cases: mean DSC {selected:.3f}."
    return HospitalChoice(
        node=one.node,
        candidate=one.chosen,
        choice=choice,
        of_one_run=len(one.models) == 1,
        is_personal=one.models[0].personal,
        dsc=one.dsc.get(one.chosen),
        num_cases=one.num_cases,
        limit=limit,
    )


def _with_stages(models: Sequence[_Model]) -> Iterator[_Stage]:
    for model in models:
        yield model
        yield from model.first_stage


def _path(model: _Stage, where: Path) -> Path:
    return (where / model.folder).resolve()


def _folder(model: _Stage, node: str, where: Path) -> ModelFolder:
    """The folder of a chosen model, with the folds that were chosen."""
    path = _path(model, where)
    lacking = [name for name in NEEDED if not (path / name).is_file()]
    lacking += [f"fold_{fold}" for fold in model.folds if not (path / f"fold_{fold}" / FINAL).is_file()]
    found = as_model(path, node, [f"fold_{fold}" for fold in model.folds])
    if lacking or found is None:
        what = join_all(lacking) if lacking else "a finished fold"
        raise DataError(f"{path}, which {node} chose, has no {what}; bring it back, or choose again: {AGAIN}")
    return found


def _join(runs: Sequence[ModelFolder], joined: dict[ModelFolder, Mapping[str, ModelFolder]]) -> ModelFolder:
    """One model, of the folds of one run or of several; ``joined`` is told which fold is of which run."""
    of_fold = {fold: run for run in runs for fold in run.folds}
    model = replace(runs[0], folds=tuple(sorted(of_fold, key=lambda fold: (len(fold), fold))))
    joined[model] = of_fold
    return model


@dataclass(frozen=True)
class _Chosen:
    """Models that were chosen, as a source: each of the folds of one run or of several.

    Attributes:
        path: folder of the choice.
        folders: the models.
        of_fold: model to fold to the folder of its run.
        digests: folder to what its folds were when they were chosen.
    """

    path: Path
    folders: Sequence[ModelFolder]
    of_fold: Mapping[ModelFolder, Mapping[str, ModelFolder]]
    digests: Mapping[Path, FoldDigests]

    def read(self, path: Path) -> bytes | None:
        return None  # what was chosen is decided

    def open(self, folder: ModelFolder, folds: tuple[str, ...]) -> TrainedModel:
        of_fold = self.of_fold[folder]
        of_run = {run: tuple(fold for fold in folds if of_fold[fold] == run) for run in map(of_fold.__getitem__, folds)}
        for run, chosen in of_run.items():
            check_folds(run.path, chosen, self.digests[run.path], again=AGAIN)
        models = {run: open_folder(run, chosen) for run, chosen in of_run.items()}
        first, *others = models.values()
        for other in others:
            for what in ("plans", "dataset_json", "mirror_axes", "postprocessing"):
                if getattr(other, what) != getattr(first, what):
                    raise DataError(
                        f"{other.where} and {first.where} are folds of one model, and their {what} differ; choose "
                        "folds of one run with --fold"
                    )
        return replace(first, folds=folds, read_weights=lambda fold: models[of_fold[fold]].weights(fold))
