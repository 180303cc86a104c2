"""nnU-Net's ``inference_information.json``: which model of a dataset, or ensemble of models, segments best."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.errors import DataError, first_problem, one_line
from fednnunet.listing import join_all
from fednnunet.models.archive import ENSEMBLES, MOST_MODELS
from fednnunet.models.json_file import parse_json
from fednnunet.models.model_folder import ModelFolder
from fednnunet.models.postprocessing import NNUNET_POSTPROCESSING_FILE, POSTPROCESSING_FILE

INFERENCE = "inference_information.json"
"""In the dataset's folder, beside those of its models."""
LONGEST_NAME = 200
"""Of an ensemble's folder; common file systems take 255 bytes."""
Part = Annotated[str, Field(max_length=200)]


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Selected(_Read):
    configuration: Part
    trainer: Part
    plans_identifier: Part


class _Considered(_Read):
    configuration: Part
    trainer: Part
    plans: Part


class _Best(_Read):
    postprocessing_file: Annotated[str, Field(max_length=4096)] | None = None
    selected_model_or_models: list[_Selected] = Field(min_length=1, max_length=MOST_MODELS)


class _Information(_Read):
    folds: list[int | Part] = Field(min_length=1, max_length=MOST_MODELS)
    considered_models: list[_Considered] = Field(max_length=MOST_MODELS)
    best_model_or_ensemble: _Best


@dataclass(frozen=True)
class InferenceInformation:
    """What it says.

    Attributes:
        selected: names of the folders of the models whose softmax outputs are averaged; most often one.
        considered: names of the folders of all models that it compares, or that the selected ones need.
        folds: to segment with.
        postprocessing: file (JSON) of what follows, below the dataset's folder; None for nothing.
    """

    selected: tuple[str, ...]
    considered: frozenset[str]
    folds: tuple[str, ...]
    postprocessing: PurePosixPath | None

    @classmethod
    def parse(cls, content: bytes, where: str, dataset: str) -> InferenceInformation:
        """Ours, or that of ``nnUNetv2_find_best_configuration``, whose paths are those of the machine it ran on.

        Args:
            content: of the file.
            where: named in errors.
            dataset: name of the folder that it is in.

        Raises:
            DataError: it says something else; names the field.
        """
        try:
            found = _Information.model_validate(parse_json(content, where, allow_nan=True))
        except ValidationError as error:
            raise DataError(f"{where}: {first_problem(error, 'the information')}") from None
        best = found.best_model_or_ensemble
        selected = [
            f"{one.trainer}__{one.plans_identifier}__{one.configuration}" for one in best.selected_model_or_models
        ]
        if len(set(selected)) < len(selected):
            raise DataError(f"{where}: selected_model_or_models names {one_line(selected[0])[:200]} twice")
        considered = {f"{one.trainer}__{one.plans}__{one.configuration}" for one in found.considered_models}
        file = best.postprocessing_file
        return cls(
            tuple(selected),
            frozenset({*selected, *considered}),
            tuple(map(str, found.folds)),
            None if file is None else _place(file, where, dataset),
        )

    def choose(self, folders: Sequence[ModelFolder], where: str) -> list[ModelFolder]:
        """The selected models of a dataset's.

        Raises:
            DataError: one is not there, or one is that the information is not about; says what to do.
        """
        by_name = {folder.path.name: folder for folder in folders}
        advice = "say which model: --configuration"
        if unknown := sorted(by_name.keys() - self.considered):
            raise DataError(f"{where} is not about {join_all(unknown)}, which lies beside; {advice}")
        if lacking := [name for name in self.selected if name not in by_name]:
            raise DataError(
                f"{where} selects {join_all([one_line(name)[:200] for name in lacking])}, which is not there; {advice}"
            )
        return [by_name[name] for name in self.selected]


def ensemble_folder(models: Sequence[str], folds: Sequence[str]) -> str:
    """nnU-Net's place of what belongs to an ensemble, below the dataset's folder.

    Of so many models that no file system takes the name, a digest stands for their names.

    >>> ensemble_folder(["nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__3d_fullres"], ["0", "1"])
    'ensembles/ensemble___nnUNetTrainer__nnUNetPlans__2d___nnUNetTrainer__nnUNetPlans__3d_fullres___0_1'
    >>> ensemble_folder([f"nnUNetTrainer__nnUNetPlans_{number}__3d_fullres" for number in range(9)], ["0"])
    'ensembles/ensemble___9_models_b73e0d6df3f6___0'
    """
    name = "___".join(["ensemble", *models, "_".join(folds)])
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256("___".join(models).encode()).hexdigest()[:12]
        name = "___".join(["ensemble", f"{len(models)}_models_{digest}", "_".join(folds)])
    return f"{ENSEMBLES}/{name}"


def as_information(
    dataset: str, considered: Sequence[str], selected: Sequence[str], folds: Sequence[str], place: str, steps: bool
) -> dict[str, Any]:
    """Content of the file, as nnU-Net's ``find_best_configuration`` writes it; paths are relative to the file.

    Args:
        dataset: nnU-Net's name of it.
        considered: names of the folders of all models that are there.
        selected: names of those whose softmax outputs are averaged.
        folds: to segment with.
        place: folder of the post-processing.
        steps: whether there is one.
    """
    parts = [name.split("__") for name in considered]
    chosen = [name.split("__") for name in selected]
    return {
        "folds": [fold if fold == "all" else int(fold) for fold in folds],
        "dataset_name_or_id": dataset,
        "considered_models": [
            {"plans": plans, "configuration": configuration, "trainer": trainer}
            for trainer, plans, configuration in parts
        ],
        "ensembling_allowed": len(selected) > 1,
        "all_results": {},
        "best_model_or_ensemble": {
            "postprocessing_file": f"{place}/{NNUNET_POSTPROCESSING_FILE}" if steps else None,
            "some_plans_file": f"{selected[0]}/plans.json",
            "selected_model_or_models": [
                {"configuration": configuration, "trainer": trainer, "plans_identifier": plans}
                for trainer, plans, configuration in chosen
            ],
        },
    }


def _place(file: str, where: str, dataset: str) -> PurePosixPath:
    """Where ``postprocessing.json`` lies below the dataset's folder, beside nnU-Net's ``postprocessing.pkl``."""
    parts = re.split(r"[/\\]", file)
    if dataset in parts:  # a path of the machine that it was written on
        parts = parts[len(parts) - parts[::-1].index(dataset) :]
    if parts == [NNUNET_POSTPROCESSING_FILE]:  # of fednnunet find-best, beside it
        return PurePosixPath(POSTPROCESSING_FILE)
    within = parts[:-1]
    is_known = parts[-1] == NNUNET_POSTPROCESSING_FILE and (
        (len(within) == 2 and (within[0] == ENSEMBLES or within[1].startswith("crossval_results_folds_")))
        or len(within) == 1
    )
    if not is_known or any(part in ("", ".", "..") for part in parts):
        raise DataError(
            f"{where}: postprocessing_file {one_line(file)[:200]} is none that nnU-Net writes below {dataset}; say "
            "which model: --configuration"
        )
    return PurePosixPath(*within, POSTPROCESSING_FILE)
