"""Folds: nnU-Net's own, and their union over centres."""

from __future__ import annotations

import random

import pytest
from sklearn.model_selection import KFold

from fednnunet.datasets.splits import crossval_splits, pooled_splits

NAMES = [f"case_{number:03d}" for number in range(13)]


def test_folds_are_those_of_nnunets_seed_whatever_the_order_of_cases() -> None:
    shuffled = NAMES.copy()
    random.Random(0).shuffle(shuffled)
    expected = [
        {"train": [NAMES[i] for i in train], "val": [NAMES[i] for i in held_out]}
        for train, held_out in KFold(n_splits=5, shuffle=True, random_state=12345).split(NAMES)
    ]
    assert crossval_splits(shuffled) == expected


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
