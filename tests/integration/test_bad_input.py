"""Bad input: one clear line with node, file or field, exit code 2, before any training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.integration.conftest import Train

OSLO_ALONE = ("strategy=local", "dataset.centres=[{name: Oslo, dataset: 201}]")


def check(result: Any, run: Path, *parts: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.lower().startswith("error")]
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for part in parts:
        assert part in lines[0]
    assert not (run / "rounds.csv").exists()
    assert not (run / "run.json").exists()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("strateg=asym", ["unknown key strateg"]),
        ("strategy=fedavgg", ["strategy/fedavgg", "asym, centralized", "ffe, krum, local"]),
        ("trainer.epoch=3", ["unknown key trainer.epoch"]),
        ("fold=5", ["fold=5", "0 to 4"]),
        ("dataset.centres=[{name: A, dataset: 999}]", ["centre A", "999", "Dataset201_Oslo"]),
        ("dataset.centres=[{name: A, dataset: /nowhere/Dataset001_A}]", ["centre A", "/nowhere/Dataset001_A"]),
    ],
)
def test_mistakes_in_the_configuration(train: Train, tmp_path: Path, override: str, parts: list[str]) -> None:
    check(train(tmp_path / "run", override), tmp_path / "run", *parts)


def test_empty_raw_folder(train: Train, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    result = train(tmp_path / "run", raw=tmp_path / "raw")
    check(result, tmp_path / "run", "centre Oslo", "no datasets")


@pytest.fixture
def broken(raw: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """A copy of the raw folder with a change made to Porto's dataset."""

    def make(change: Callable[[Path], None]) -> Path:
        copy = tmp_path / "raw"
        shutil.copytree(raw, copy)
        change(copy / "Dataset202_Porto")
        return copy

    return make


def cut_label(folder: Path) -> None:
    path = str(folder / "labelsTr" / "case_002.nii.gz")
    image = sitk.ReadImage(path)
    cut = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:-1])
    cut.SetSpacing(image.GetSpacing())
    sitk.WriteImage(cut, path)


def unknown_value(folder: Path) -> None:
    path = str(folder / "labelsTr" / "case_004.nii.gz")
    image = sitk.ReadImage(path)
    changed = sitk.GetImageFromArray(np.uint8(7) * sitk.GetArrayFromImage(image))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, path)


def other(field: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (cut_label, ["node Porto", "case_002_0000.nii.gz", "6 x 80 x 80", "5 x 80 x 80"]),
        (unknown_value, ["node Porto", "case_004.nii.gz", "value 7"]),
        (other("labels", {"background": 0, "cyst": 1}), ["Porto", "labels", "tumour", "cyst"]),
        (other("channel_names", {"0": "CT"}), ["Porto", "channel_names", "MRI", "CT"]),
    ],
    ids=["shape", "value", "labels", "channels"],
)
def test_data_that_do_not_fit(
    train: Train,
    tmp_path: Path,
    broken: Callable[[Callable[[Path], None]], Path],
    change: Callable[[Path], None],
    parts: list[str],
) -> None:
    centres = "dataset.centres=[{name: Oslo, dataset: 201}, {name: Porto, dataset: 202}]"
    check(train(tmp_path / "run", centres, raw=broken(change)), tmp_path / "run", *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_and_none_there(train: Train, tmp_path: Path) -> None:
    check(
        train(tmp_path / "run", *OSLO_ALONE, "compute.device=cuda"),
        tmp_path / "run",
        "compute.device=cuda",
        "no CUDA GPU",
    )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trainer.class=nnUNetTrainerOfDreams", ["trainer.class=nnUNetTrainerOfDreams", "near it: nnUNetTrainer"]),
        ("model.planner=Planner9", ["model.planner=Planner9"]),
        ("+model.overrides.UNet_bas_num_features=3", ["UNet_bas_num_features"]),
    ],
)
def test_names_that_nnunet_does_not_know(train: Train, tmp_path: Path, override: str, parts: list[str]) -> None:
    check(train(tmp_path / "run", *OSLO_ALONE, override), tmp_path / "run", *parts)


def test_a_network_that_would_train_to_nan(train: Train, tmp_path: Path) -> None:
    few = train(tmp_path / "run", *OSLO_ALONE, "+model.overrides.UNet_featuremap_min_edge_length=16")
    check(
        few,
        tmp_path / "run",
        "node Oslo",
        "network for 2d has 2 stages",
        "trainer.class=nnUNetTrainerNoDeepSupervision",
    )
