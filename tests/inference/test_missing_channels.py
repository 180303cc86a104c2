"""Cases that lack channels, with a model that was trained to do without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from fednnunet.datasets.union_channels import learnt_to_miss
from fednnunet.errors import DataError
from fednnunet.inference.prediction import Prediction, Settings
from fednnunet.inference.run import Progress
from tests.support.trained_models import TrainedFolders

CPU = torch.device("cpu")


@pytest.fixture
def two_channels(trained_folders: TrainedFolders, tmp_path: Path) -> Path:
    """The 2d model with a second channel, which its first layer adds to the first one at half its weight."""
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder, ignore=shutil.ignore_patterns("fold_1"))
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    for name, tensor in checkpoint["network_weights"].items():
        if tensor.ndim == 4 and tensor.shape[1] == 1:
            checkpoint["network_weights"][name] = torch.cat([tensor, tensor / 2], 1)
    torch.save(checkpoint, path)
    plans, description = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    plans["foreground_intensity_properties_per_channel"]["1"] = plans["foreground_intensity_properties_per_channel"][
        "0"
    ]
    for configuration in plans["configurations"].values():
        for key in ("normalization_schemes", "use_mask_for_norm"):
            if key in configuration:
                configuration[key] *= 2
    description |= {"channel_names": {"0": "T1", "1": "T2"}, "zeros_where_missing": ["T2"]}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def segment(model: Path, inputs: Path, output: Path) -> np.ndarray:
    outcome = Prediction.of(model, [inputs], output, Settings(), CPU).run(Progress())
    assert outcome.written == ["a"]
    return sitk.GetArrayFromImage(sitk.ReadImage(str(output / "a.nii.gz")))


def test_a_missing_channel_is_zeros_as_in_training(
    trained_folders: TrainedFolders, two_channels: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        shutil.copy(sorted((trained_folders.raw / "imagesTr").iterdir())[0], folder / "a_0000.nii.gz")
    image = sitk.ReadImage(str(one / "a_0000.nii.gz"))
    sitk.WriteImage(image * 0, str(two / "a_0001.nii.gz"))
    found = segment(two_channels, one, tmp_path / "without")
    assert np.array_equal(found, segment(two_channels, two, tmp_path / "zeros"))  # z-scored, zeros are zeros
    turned = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, ::-1, ::-1])
    turned.CopyInformation(image)
    sitk.WriteImage(turned, str(two / "a_0001.nii.gz"))
    assert not np.array_equal(found, segment(two_channels, two, tmp_path / "both"))
    (one / "a_0000.nii.gz").rename(one / "a_0001.nii.gz")
    with pytest.raises(DataError, match=r"case a lacks a_0000.nii.gz \(T1\), which the model was not trained to do"):
        segment(two_channels, one, tmp_path / "none")


def test_models_say_what_they_have_learnt_to_miss() -> None:
    description = {"channel_names": {"0": "T1", "1": "T2"}, "acquired": ["T1"]}
    assert learnt_to_miss(description, 0.25) == ["T1", "T2"]
    assert learnt_to_miss(description, 0) == ["T2"]
    del description["acquired"]
    assert learnt_to_miss(description, 0) == []
    assert learnt_to_miss({"channel_names": {"0": "T1"}}, 0.25) == []
