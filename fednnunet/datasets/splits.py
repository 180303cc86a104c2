"""Splits of the cases into folds: nnU-Net's five or a centre's own, of one centre and united over centres.

A fold holds no case out where a centre has fewer cases than there are folds. It then trains on all of them, and the
centre is not scored in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fednnunet.datasets.pooled import pooled_name
from fednnunet.datasets.raw import RawDataset
from fednnunet.errors import ConfigError, DataError
from fednnunet.exchange.messages import Fold

Split = dict[str, list[str]]
SPLITS_FILE = "splits_final.json"
FOLDS = 5
"""Number of nnU-Net's folds."""
ADVICE_ON_FEW_CASES = "train it with fold=all, make it external: true, or add cases"
FEWEST_CASES = 2
"""Fewest cases that can be divided into training and held-out ones."""


def splits_of(dataset: RawDataset, centre: str, folds: Sequence[Fold]) -> list[Split]:
    """Folds of a centre: those of ``splits_final.json`` beside ``dataset.json``, where nnU-Net looks too, or nnU-Net's.

    Args:
        dataset: the centre's cases.
        centre: named in errors.
        folds: folds that will be trained; the others may be unfinished. ``all`` needs none of them.

    Raises:
        ConfigError: a fold that will be trained is not there, or there is one case; without path and case names, as it
            may leave a node.
        DataError: such a fold has no training or no held-out case, or names an unknown one; or the file holds no list
            of folds.
    """
    path, names = dataset.folder / SPLITS_FILE, {case.name for case in dataset.cases}
    own = path.is_file()
    splits = _read_splits(path, centre) if own else crossval_splits(sorted(names))
    for fold in folds:
        if fold == "all":
            continue
        if fold >= len(splits):
            there = SPLITS_FILE if own else "nnU-Net's cross-validation"
            more = "add it to the file" if own else f"write more into a {SPLITS_FILE} beside its dataset.json"
            raise ConfigError(
                f"centre {centre}: {there} has {_folds(len(splits))}; fold={fold} is none of them: choose among them, "
                f"or {more}"
            )
        if own:
            _check_fold(splits[fold], names, f"centre {centre}: {path}: fold {fold}")
        elif len(names) < FEWEST_CASES:
            raise ConfigError(
                f"centre {centre} has 1 training case; cross-validation needs {FEWEST_CASES}, to hold one out: set "
                "fold=all, or make the centre external: true"
            )
    return splits


def check_splits_file(dataset: RawDataset, centre: str) -> None:
    """Check that the centre's own splits, if it has any, are a list of folds.

    Raises:
        DataError: they are not.
    """
    path = dataset.folder / SPLITS_FILE
    if path.is_file():
        _read_splits(path, centre)


def _read_splits(path: Path, centre: str) -> list[Split]:
    """Folds as they are in the file; a part that is no list is empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, list) or not all(isinstance(fold, dict) for fold in content):
        raise DataError(f"centre {centre}: {path} must be a list of folds, each with the lists train and val")
    return [{part: _names(fold.get(part)) for part in ("train", "val")} for fold in content]


def _names(part: Any) -> list[str]:
    return list(map(str, part)) if isinstance(part, list) else []


def _check_fold(fold: Split, names: set[str], where: str) -> None:
    unknown = sorted({name for part in fold.values() for name in part} - names)
    both = sorted(set(fold["train"]) & set(fold["val"]))
    repeated = sorted(name for part in fold.values() for name, number in Counter(part).items() if number > 1)
    if unknown:
        raise DataError(f"{where} names {unknown[0]}, which is no case")
    if both:
        raise DataError(f"{where} trains on {both[0]} and holds it out")
    if repeated:
        raise DataError(f"{where} names {repeated[0]} twice")
    for part, what in (("train", "training"), ("val", "held-out")):
        if not fold[part]:
            raise DataError(f"{where} has no {what} case: it needs the lists train and val")


def _folds(number: int) -> str:
    return {0: "no folds", 1: "one fold, 0"}.get(number, f"{number} folds, 0 to {number - 1}")


def crossval_splits(case_names: Sequence[str]) -> list[Split]:
    """The splits that nnU-Net makes for these cases: five folds, each with the names ``train`` and ``val``.

    Of two to four cases, for which nnU-Net has none, each is held out once; the other folds hold none out.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    names = sorted(case_names)
    holding_out = min(len(names), FOLDS)
    splits = generate_crossval_split(names, seed=12345, n_splits=holding_out) if holding_out >= FEWEST_CASES else []
    splits += [{"train": names, "val": []}] * (FOLDS - len(splits))
    return [{part: [str(name) for name in names] for part, names in split.items()} for split in splits]


def effect_of_few_cases(cases: int) -> str | None:
    """What cross-validation does with so few training cases; None where there is one for each fold to hold out."""
    if cases >= FOLDS:
        return None
    if cases < FEWEST_CASES:
        return f"there is {cases} training case; cross-validation has none to hold out"
    return (
        f"there are {cases} training cases: folds 0 to {cases - 1} hold one out each; in the others the centre trains "
        "on all, and is not scored"
    )


def without_held_out(splits: Sequence[Split], folds: Sequence[Fold]) -> list[int]:
    """Those of ``folds`` that hold no case out."""
    return [fold for fold in folds if fold != "all" and not splits[fold]["val"]]


def splits_for_nnunet(splits: Sequence[Split]) -> list[Split]:
    """The splits as nnU-Net can train by them: where none is held out, it validates on training cases, as of fold all.

    What is held out is then ``val`` without ``train``.
    """
    return [{"train": split["train"], "val": split["val"] or split["train"]} for split in splits]


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
    """Fold n is the union of the centres' folds n (paper), by pooled case names; as many as every centre has."""
    return [
        {
            part: [pooled_name(centre, name) for centre, fold in zip(splits, folds, strict=True) for name in fold[part]]
            for part in ("train", "val")
        }
        for folds in zip(*splits.values(), strict=False)
    ]
