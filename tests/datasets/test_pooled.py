"""The pooled dataset and its folds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fednnunet.datasets.pooled import pool_datasets
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.splits import crossval_splits, pooled_splits
from fednnunet.errors import DataError


def test_pool_refers_to_every_centres_files(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    centres = {
        "Vall d'Hebron": read_dataset(make_dataset(name="Dataset101_A", cases=5), "Vall d'Hebron"),
        "Oslo": read_dataset(make_dataset(name="Dataset102_B", cases=7, seed=1), "Oslo"),
    }
    pooled = pool_datasets(centres, tmp_path / "pool", "Dataset999_Pooled")
    assert read_dataset(tmp_path / "pool" / "Dataset999_Pooled", "pool").cases == pooled.cases
    assert len(pooled.cases) == 12
    assert {case.name.split("__")[0] for case in pooled.cases} == {"Vall-d-Hebron", "Oslo"}


def test_centres_that_disagree_are_not_pooled(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(name="Dataset102_B")
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"channel_names": {"0": "CT"}}))
    centres = {
        "A": read_dataset(make_dataset(name="Dataset101_A"), "A"),
        "B": read_dataset(folder, "B"),
    }
    with pytest.raises(DataError, match="centres A and B disagree on channel_names"):
        pool_datasets(centres, tmp_path / "pool", "Dataset999_Pooled")


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
