"""The two stages of nnU-Net's cascade, of one source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from fednnunet.errors import DataError
from fednnunet.inference.prediction import Prediction, Settings
from fednnunet.inference.run import Progress
from tests.inference.test_prediction import CPU, images, same_segmentations
from tests.support.trained_models import TrainedFolders

__all__ = ["images"]  # fixture


def add_stage(source: Path, folder: Path, name: str, plans: dict[str, Any], extra_channels: int) -> None:
    """A model of the configuration ``name`` that has the weights of ``source``, with more input channels."""
    target = folder / f"nnUNetTrainer__nnUNetPlans__{name}"
    shutil.copytree(source, target)
    (target / "plans.json").write_text(json.dumps(plans))
    path = target / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["configuration"] = name
    for layer, tensor in checkpoint["network_weights"].items():
        if tensor.ndim == 5 and tensor.shape[1] == 1 and extra_channels:
            checkpoint["network_weights"][layer] = torch.cat([tensor, *[tensor.flip(-1)] * extra_channels], 1)
    torch.save(checkpoint, path)


@pytest.fixture
def cascade(trained_folders: TrainedFolders, tmp_path: Path) -> Path:
    """Results of a dataset with both stages; the first one has voxels of twice the size."""
    source = trained_folders.model("3d_fullres")
    plans = json.loads((source / "plans.json").read_text())
    full = plans["configurations"]["3d_fullres"]
    coarse = [full["spacing"][0], *(2 * step for step in full["spacing"][1:])]
    plans["configurations"]["3d_lowres"] = {**full, "spacing": coarse, "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    folder = tmp_path / "Dataset101_Boxes"
    add_stage(source, folder, "3d_lowres", plans, 0)
    add_stage(source, folder, "3d_cascade_fullres", plans, 1)
    return folder


def prediction(source: Path, inputs: Path, output: Path) -> Prediction:
    return Prediction.of(source, [inputs], output, Settings(configuration="3d_cascade_fullres"), CPU)


def test_voxels_are_those_of_both_stages_of_nnunet(cascade: Path, images: Path, tmp_path: Path) -> None:
    assert prediction(cascade, images, tmp_path / "ours").run(Progress()).written == ["a", "b", "c.d"]
    before = None
    for stage in ("3d_lowres", "3d_cascade_fullres"):
        (tmp_path / stage).mkdir()
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(cascade / f"nnUNetTrainer__nnUNetPlans__{stage}"), (0,))
        predictor.predict_from_files_sequential(
            str(images), str(tmp_path / stage), folder_with_segs_from_prev_stage=before
        )
        before = str(tmp_path / stage)
    assert same_segmentations(tmp_path / "ours", tmp_path / "3d_cascade_fullres") > 100
    with pytest.raises(AssertionError):
        same_segmentations(tmp_path / "ours", tmp_path / "3d_lowres")


def test_a_cascade_without_its_first_stage_is_refused(cascade: Path, images: Path, tmp_path: Path) -> None:
    alone = cascade / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    with pytest.raises(
        DataError, match="3d_cascade_fullres refines what 3d_lowres segments, and its model is not there"
    ):
        prediction(alone, images, tmp_path / "out")
