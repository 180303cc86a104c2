"""Folds: nnU-Net's own, and their union over centres."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from sklearn.model_selection import KFold

from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.splits import (
    crossval_splits,
    pooled_splits,
    splits_by_patient,
    splits_for_nnunet,
    splits_of,
    without_held_out,
)
from fednnunet.errors import ConfigError, DataError
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


def test_centres_with_different_numbers_of_folds_have_the_folds_that_all_have() -> None:
    splits = {"A": crossval_splits(NAMES), "B": crossval_splits(NAMES)[:4]}
    assert len(pooled_splits(splits)) == 4


@pytest.mark.parametrize("cases", [2, 3, 4])
def test_each_of_few_cases_is_held_out_once_and_the_other_folds_train_on_all(
    make_dataset: MakeDataset, cases: int
) -> None:
    dataset = read_dataset(make_dataset(cases=cases), "Oslo")
    splits = splits_of(dataset, "Oslo", range(5))
    names = CASES[:cases]
    assert len(splits) == 5
    for fold, split in enumerate(splits):
        assert len(split["val"]) == (fold < cases)
        assert sorted(split["train"] + split["val"]) == names
    assert sorted(name for split in splits for name in split["val"]) == names
    assert without_held_out(splits, ["all", 0, 3, 4]) == [fold for fold in (3, 4) if fold >= cases]


def test_one_case_can_be_trained_on_but_not_held_out(make_dataset: MakeDataset) -> None:
    dataset = read_dataset(make_dataset(cases=1), "Oslo")
    splits_of(dataset, "Oslo", ["all"])
    with pytest.raises(ConfigError, match=r"centre Oslo has 1 training case; .* needs 2, .* set fold=all"):
        splits_of(dataset, "Oslo", ["all", 0])


def test_nnunet_validates_on_training_cases_where_a_fold_holds_none_out() -> None:
    few, many = crossval_splits(NAMES[:3]), crossval_splits(NAMES)
    assert splits_for_nnunet(many) == many
    assert splits_for_nnunet(few)[:3] == few[:3]
    assert splits_for_nnunet(few)[3] == {"train": NAMES[:3], "val": NAMES[:3]}
    together = pooled_splits({"A": few, "B": many})[3]
    assert splits_for_nnunet([together]) == [together], "the other centre's held-out cases serve"
    assert {name.split("__")[0] for name in together["val"]} == {"B"}


def own_splits(make_dataset: MakeDataset, content: Any) -> RawDataset:
    folder = make_dataset(cases=5)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "splits_final.json").write_text(text)
    return read_dataset(folder, "Oslo")


CASES = [f"case_{number:03d}" for number in range(5)]
BY_PATIENT = [{"train": CASES[2:], "val": CASES[:2]}] * 5


def test_a_centres_own_splits_are_taken_as_nnunet_does(make_dataset: MakeDataset) -> None:
    assert splits_of(own_splits(make_dataset, BY_PATIENT), "Oslo", range(5)) == BY_PATIENT


def test_without_own_splits_they_are_nnunets(make_dataset: MakeDataset) -> None:
    assert splits_of(read_dataset(make_dataset(cases=5), "Oslo"), "Oslo", range(5)) == crossval_splits(CASES)


ONE_BY_ONE = [{"train": [name for name in CASES if name != held_out], "val": [held_out]} for held_out in CASES]


@pytest.mark.parametrize(
    ("content", "folds"),
    [
        (BY_PATIENT[:1], [0]),
        (BY_PATIENT[:4], [0, 3]),
        (ONE_BY_ONE + BY_PATIENT, [9, "all"]),
        ([BY_PATIENT[0], {"train": [], "val": []}, {"train": ["nobody"]}, {}], [0]),
        ([], ["all"]),
    ],
)
def test_only_folds_that_are_trained_need_to_be_whole(make_dataset: MakeDataset, content: Any, folds: Any) -> None:
    splits = splits_of(own_splits(make_dataset, content), "Oslo", folds)
    assert len(splits) == len(content)
    for fold in folds:
        assert fold == "all" or splits[fold] == content[fold]


@pytest.mark.parametrize(
    ("content", "fold", "problem"),
    [
        (BY_PATIENT[:4], 4, "splits_final.json has 4 folds, 0 to 3; fold=4 is none of them"),
        (BY_PATIENT[:1], 1, "splits_final.json has one fold, 0; fold=1 is none of them"),
        ([], 0, "splits_final.json has no folds; fold=0 is none of them"),
        (None, 5, "nnU-Net's cross-validation has 5 folds, 0 to 4; fold=5 is none of them"),
    ],
)
def test_a_fold_that_is_not_there_is_refused(make_dataset: MakeDataset, content: Any, fold: int, problem: str) -> None:
    """nnU-Net would split at random instead."""
    dataset = own_splits(make_dataset, content) if content is not None else read_dataset(make_dataset(), "Oslo")
    with pytest.raises(ConfigError, match=f"^centre Oslo: {problem}"):
        splits_of(dataset, "Oslo", [0, fold] if content else [fold])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "must be a list of folds"),
        ({"train": []}, "must be a list of folds"),
        ("[1]", "must be a list of folds"),
        ([{"train": CASES}] * 5, "fold 0 has no held-out case"),
        ([{"train": ["nobody"], "val": CASES}] * 5, "fold 0 names nobody, which is no case"),
        ([{"train": CASES, "val": CASES[3:]}] * 5, "fold 0 trains on case_003 and holds it out"),
        ([{"train": [], "val": CASES}] * 5, "fold 0 has no training case"),
        ([{"train": CASES, "val": []}] * 5, "fold 0 has no held-out case"),
        ([{"train": [*CASES[2:], CASES[2]], "val": CASES[:2]}] * 5, "fold 0 names case_002 twice"),
    ],
)
def test_own_splits_that_cannot_be_used_are_refused(make_dataset: MakeDataset, content: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"centre Oslo: .*splits_final.json.*{problem}"):
        splits_of(own_splits(make_dataset, content), "Oslo", [0])
