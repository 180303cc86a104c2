"""Voxels of regions beside an ignore label, and of oblique and single slices, are nnU-Net's own, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from tests.inference.test_prediction import predict, predict_with_nnunet, same_segmentations, write_image
from tests.support.trained_models import TrainedFolders

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}
OBLIQUE = (0.8, -0.48, -0.36, 0.6, 0.64, 0.48, 0.0, -0.6, 0.8)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_voxels_are_those_of_nnunet(trained_folders: TrainedFolders, tmp_path: Path, reader: str) -> None:
    model = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), model)
    plans, described = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
    plans["image_reader_writer"] = reader
    described |= REGIONS  # two regions have two outputs, as background and tumour have
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(described))
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    checkpoint["init_args"] |= {"plans": plans, "dataset_json": described}
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")

    images = tmp_path / "images"
    write_image(images / "oblique_0000.nii.gz", 0, (6, 40, 30), (3.0, 1.0, 1.1))
    image = sitk.ReadImage(str(images / "oblique_0000.nii.gz"))
    image.SetDirection(OBLIQUE)
    sitk.WriteImage(image, str(images / "oblique_0000.nii.gz"))
    write_image(images / "slice_0000.nii.gz", 1, (1, 40, 34), (2.0, 0.8, 0.7))

    assert predict(model, images, tmp_path / "ours", folds=("0",)).written == ["oblique", "slice"]
    predict_with_nnunet(model, images, tmp_path / "theirs", (0,))
    assert same_segmentations(tmp_path / "ours", tmp_path / "theirs") > 100
