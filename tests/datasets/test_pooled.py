"""The pooled dataset and its folds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednnunet.datasets.pooled import centre_of, pool_datasets, pooled_name
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.errors import DataError
from tests.conftest import MakeDataset
from tests.support.raw_datasets import change_description


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


def test_regions_in_another_order_are_not_pooled_and_plain_labels_are(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    regions = {"background": 0, "whole": [1, 2, 3], "x": 2, "y": 3}
    plain = {"background": 0, "x": 1, "y": 2}

    def pool(number: int, labels: dict[str, Any], turned: dict[str, Any], *orders: Any) -> RawDataset:
        centres = {}
        for centre, of_centre, order in zip("AB", (labels, turned), orders, strict=True):
            folder = make_dataset(name=f"Dataset10{number}_{centre}", cases=5)
            change_description(folder, labels=of_centre, regions_class_order=order)
            centres[centre] = read_dataset(folder, centre)
        return pool_datasets(centres, tmp_path / f"pool{number}", "Dataset999_Pooled")

    assert pool(1, plain, dict(reversed(plain.items())), None, None).labels == plain
    turned = {"background": 0, "whole": [1, 2, 3], "y": 3, "x": 2}
    with pytest.raises(DataError, match=r"disagree on labels .*'x': 2, 'y': 3} and .*'y': 3, 'x': 2}"):
        pool(2, regions, turned, [1, 2, 3], [1, 3, 2])


def test_centres_with_one_name_in_files_are_not_pooled(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    centres = {name: read_dataset(make_dataset(), name) for name in ("St. Pau", "St  Pau")}
    with pytest.raises(DataError, match=r"St. Pau and St  Pau cannot be told apart"):
        pool_datasets(centres, tmp_path / "pool", "Dataset999_Pooled")


@pytest.mark.parametrize("case", ["case_001", "case__001", "_001"])
def test_centre_and_case_are_read_from_a_pooled_name(case: str) -> None:
    assert centre_of(pooled_name("Vall_d'Hebron", case)) == ("Vall-d-Hebron", case)


def test_name_of_no_pooled_case_is_refused() -> None:
    with pytest.raises(ValueError, match="case_001 is not a name of a pooled case"):
        centre_of("case_001")
