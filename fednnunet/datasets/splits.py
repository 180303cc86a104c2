"""nnU-Net's five-fold splits, of one centre and united over centres."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from fednnunet.datasets.pooled import pooled_name
from fednnunet.datasets.raw import RawDataset
from fednnunet.errors import DataError

Split = dict[str, list[str]]
FOLDS = 5


def splits_of(dataset: RawDataset, centre: str) -> list[Split]:
    """Folds of a centre: those of ``splits_final.json`` beside ``dataset.json``, where nnU-Net looks too, or nnU-Net's.

    Raises:
        DataError: the file is no list of five folds with ``train`` and ``val``, or names an unknown case.
    """
    path = dataset.folder / "splits_final.json"
    names = {case.name for case in dataset.cases}
    if not path.is_file():
        return crossval_splits(sorted(names))
    try:
        splits: list[Split] = [
            {part: list(map(str, fold[part])) for part in ("train", "val")} for fold in json.loads(path.read_text())
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise DataError(f"centre {centre}: {path} must be a list of folds, each with the lists train and val") from None
    if len(splits) != FOLDS:
        raise DataError(f"centre {centre}: {path} has {len(splits)} folds; it must have {FOLDS}")
    for number, fold in enumerate(splits):
        unknown = sorted({name for part in fold.values() for name in part} - names)
        both = sorted(set(fold["train"]) & set(fold["val"]))
        if unknown or both:
            what = f"names {unknown[0]}, which is no case" if unknown else f"trains on {both[0]} and holds it out"
            raise DataError(f"centre {centre}: {path}: fold {number} {what}")
        for part, what in (("train", "training"), ("val", "held-out")):
            if not fold[part]:
                raise DataError(f"centre {centre}: {path}: fold {number} has no {what} case")
    return splits


def crossval_splits(case_names: Sequence[str]) -> list[Split]:
    """The splits that nnU-Net makes for these cases: five folds, each with the names ``train`` and ``val``."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    splits = generate_crossval_split(sorted(case_names), seed=12345, n_splits=5)
    return [{part: [str(name) for name in names] for part, names in split.items()} for split in splits]


def splits_by_patient(patients: Mapping[str, str]) -> list[Split]:
    """Five folds as nnU-Net makes them, but of patients: all cases of one are in the same part.

    Args:
        patients: case name to patient.
    """
    folds = crossval_splits(sorted(set(patients.values())))
    return [
        {part: sorted(case for case, patient in patients.items() if patient in names) for part, names in fold.items()}
        for fold in folds
    ]


def pooled_splits(splits: Mapping[str, Sequence[Split]]) -> list[Split]:
    """Fold n is the union of the centres' folds n (paper), by pooled case names."""
    return [
        {
            part: [pooled_name(centre, name) for centre, fold in zip(splits, folds, strict=True) for name in fold[part]]
            for part in ("train", "val")
        }
        for folds in zip(*splits.values(), strict=True)
    ]
