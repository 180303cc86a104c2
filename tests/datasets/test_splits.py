"""Folds: nnU-Net's own, and their union over centres."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from sklearn.model_selection import KFold

from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.splits import crossval_splits, pooled_splits, splits_by_patient, splits_of
from fednnunet.errors import DataError
from tests.conftest import MakeDataset

NAMES = [f"case_{number:03d}" for number in range(13)]


def test_folds_are_those_of_nnunets_seed_whatever_the_order_of_cases() -> None:
    shuffled = NAMES.copy()
    random.Random(0).shuffle(shuffled)
    expected = [
        {"train": [NAMES[i] for i in train], "val": [NAMES[i] for i in held_out]}
        for train, held_out in KFold(n_splits=5, shuffle=True, random_state=12345).split(NAMES)
    ]
    assert crossval_splits(shuffled) == expected


def test_cases_of_a_patient_stay_on_one_side_in_nnunets_folds_of_the_patients() -> None:
    patients = [f"patient{number:02d}" for number in range(13)]
    by_case = {f"{patient}_{phase}": patient for phase in ("ES", "ED") for patient in patients[:12]}
    by_case["patient12_ED"] = "patient12"
    for split, of_patients in zip(splits_by_patient(by_case), crossval_splits(patients), strict=True):
        for part in ("train", "val"):
            assert {by_case[case] for case in split[part]} == set(of_patients[part])
        assert sorted(split["train"] + split["val"]) == sorted(by_case)


def test_pooled_folds_are_the_union_of_the_centres_folds() -> None:
    names = {"A": [f"a{i}" for i in range(11)], "B": [f"b{i}" for i in range(6)]}
    splits = {centre: crossval_splits(cases) for centre, cases in names.items()}
    pooled = pooled_splits(splits)
    assert len(pooled) == 5
    for fold, split in enumerate(pooled):
        for part in ("train", "val"):
            expected = {f"{centre}__{case}" for centre in names for case in splits[centre][fold][part]}
            assert set(split[part]) == expected
    held_out = sorted(case for split in pooled for case in split["val"])
    assert held_out == sorted(f"{centre}__{case}" for centre, cases in names.items() for case in cases)


def test_centres_with_different_numbers_of_folds_are_refused() -> None:
    splits = {"A": crossval_splits(NAMES), "B": crossval_splits(NAMES)[:4]}
    with pytest.raises(ValueError, match="shorter"):
        pooled_splits(splits)


def own_splits(make_dataset: MakeDataset, content: Any) -> RawDataset:
    folder = make_dataset(cases=5)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "splits_final.json").write_text(text)
    return read_dataset(folder, "Oslo")


CASES = [f"case_{number:03d}" for number in range(5)]
BY_PATIENT = [{"train": CASES[2:], "val": CASES[:2]}] * 5


def test_a_centres_own_splits_are_taken_as_nnunet_does(make_dataset: MakeDataset) -> None:
    assert splits_of(own_splits(make_dataset, BY_PATIENT), "Oslo") == BY_PATIENT


def test_without_own_splits_they_are_nnunets(make_dataset: MakeDataset) -> None:
    assert splits_of(read_dataset(make_dataset(cases=5), "Oslo"), "Oslo") == crossval_splits(CASES)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "must be a list of folds"),
        ({"train": []}, "must be a list of folds"),
        ([{"train": CASES}] * 5, "must be a list of folds"),
        (BY_PATIENT[:4], "has 4 folds; it must have 5"),
        ([{"train": ["nobody"], "val": CASES}] * 5, "fold 0 names nobody, which is no case"),
        ([{"train": CASES, "val": CASES[3:]}] * 5, "fold 0 trains on case_003 and holds it out"),
        ([{"train": [], "val": CASES}] * 5, "fold 0 has no training case"),
        ([{"train": CASES, "val": []}] * 5, "fold 0 has no held-out case"),
    ],
)
def test_own_splits_that_cannot_be_used_are_refused(make_dataset: MakeDataset, content: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"centre Oslo: .*splits_final.json.*{problem}"):
        splits_of(own_splits(make_dataset, content), "Oslo")
