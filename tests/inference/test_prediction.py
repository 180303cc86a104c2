"""Segmentations are those of nnU-Net's own predictor, voxel by voxel, whatever the model and the files."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from fednnunet.inference.prediction import Prediction, Settings
from fednnunet.inference.run import Outcome, Progress
from tests.support.trained_models import TrainedFolders

CPU = torch.device("cpu")


def write_image(path: Path, seed: int, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Noise with a bright box, within a rim of zeros that nnU-Net crops; lengths (Z, Y, X)."""
    random = np.random.default_rng(seed)
    voxels = random.normal(100, 20, shape).astype(np.float32)
    voxels[:, shape[1] // 4 : shape[1] // 2, shape[2] // 3 : shape[2] // 2] += 150
    voxels[:, :3] = voxels[:, :, -2:] = 0
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    image.SetOrigin((5.0, -3.0, 2.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three cases: as in training, of other spacing, and smaller than a tile with the coarse axis last."""
    folder = tmp_path / "images"
    write_image(folder / "a_0000.nii.gz", 0, (6, 40, 40), (3.0, 1.0, 1.0))
    write_image(folder / "b_0000.nii.gz", 1, (9, 61, 47), (2.0, 0.8, 0.7))
    write_image(folder / "c.d_0000.nii.gz", 2, (20, 24, 5), (1.0, 1.2, 4.0))
    return folder


def predict(source: Path, inputs: Path, output: Path, **settings: Any) -> Outcome:
    return Prediction.of(source, [inputs], output, Settings(**settings), CPU).run(Progress())


def predict_with_nnunet(
    model: Path, inputs: Path, output: Path, folds: tuple[int, ...], probabilities: bool = False, mirroring: bool = True
) -> None:
    output.mkdir()
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, use_mirroring=mirroring)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    predictor.predict_from_files_sequential(str(inputs), str(output), save_probabilities=probabilities)


def same_segmentations(ours: Path, theirs: Path, ending: str = ".nii.gz") -> int:
    """Number of voxels that are not background; the same in both folders, in the same place."""
    names = sorted(path.name for path in theirs.glob(f"*{ending}"))
    assert sorted(path.name for path in ours.glob(f"*{ending}")) == names
    voxels = 0
    for name in names:
        one, other = (sitk.ReadImage(str(folder / name)) for folder in (ours, theirs))
        for place in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
            assert getattr(one, place)() == getattr(other, place)(), name
        assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other)), name
        voxels += int(np.count_nonzero(sitk.GetArrayFromImage(one)))
    return voxels


@pytest.mark.parametrize(("configuration", "folds"), [("2d", (0, 1)), ("2d", (1,)), ("3d_fullres", (0,))])
def test_voxels_are_those_of_nnunet(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path, configuration: str, folds: tuple[int, ...]
) -> None:
    model = trained_folders.model(configuration)
    outcome = predict(model, images, tmp_path / "ours", folds=tuple(map(str, folds)), probabilities=True)
    assert outcome.written == ["a", "b", "c.d"]
    assert not outcome.failed
    predict_with_nnunet(model, images, tmp_path / "theirs", folds, probabilities=True)
    assert same_segmentations(tmp_path / "ours", tmp_path / "theirs") > 100
    for name in outcome.written:
        ours, theirs = (np.load(tmp_path / folder / f"{name}.npz")["probabilities"] for folder in ("ours", "theirs"))
        assert np.array_equal(ours, theirs)
    plans = [json.loads((tmp_path / folder / "plans.json").read_text()) for folder in ("ours", "theirs")]
    assert plans[0] == plans[1]


def test_without_mirroring_voxels_are_those_of_nnunet_without(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path
) -> None:
    model = trained_folders.model("2d")
    predict(model, images, tmp_path / "ours", folds=("0",), mirroring=False)
    predict_with_nnunet(model, images, tmp_path / "theirs", (0,), mirroring=False)
    assert same_segmentations(tmp_path / "ours", tmp_path / "theirs") > 100


def test_files_of_another_format_give_the_same_voxels(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path
) -> None:
    model = trained_folders.model("2d")
    other = tmp_path / "nrrd"
    other.mkdir()
    for path in images.iterdir():
        sitk.WriteImage(sitk.ReadImage(str(path)), str(other / path.name.replace(".nii.gz", ".nrrd")))
    predict(model, other, tmp_path / "ours")
    predict_with_nnunet(model, images, tmp_path / "theirs", (0, 1))
    assert same_segmentations(tmp_path / "ours", tmp_path / "theirs") > 100


@pytest.mark.parametrize(
    ("reader", "ending"),
    [
        ("NaturalImage2DIO", ".png"),
        ("Tiff3DIO", ".tiff"),
        ("NibabelIO", ".nii.gz"),
        ("NibabelIOWithReorient", ".nii.gz"),
    ],
)
def test_voxels_are_those_of_nnunet_with_each_of_its_readers(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path, reader: str, ending: str
) -> None:
    model, inputs = tmp_path / trained_folders.model("2d").name, tmp_path / "inputs"
    shutil.copytree(trained_folders.model("2d"), model)
    for name, key, value in (("plans", "image_reader_writer", reader), ("dataset", "file_ending", ending)):
        content = json.loads((model / f"{name}.json").read_text())
        (model / f"{name}.json").write_text(json.dumps({**content, key: value}))
    inputs.mkdir()
    for path in images.iterdir():
        image, case = sitk.ReadImage(str(path)), path.name.removesuffix("_0000.nii.gz")
        target = str(inputs / f"{case}_0000{ending}")
        voxels = sitk.GetArrayFromImage(image)
        if ending == ".png":
            sitk.WriteImage(sitk.GetImageFromArray(voxels[3].clip(0, 255).astype(np.uint8)), target)
        elif ending == ".tiff":
            tifffile.imwrite(target, voxels)
            (inputs / f"{case}.json").write_text(json.dumps({"spacing": image.GetSpacing()[::-1]}))
        else:
            image.SetDirection((0, 0, 1, -1, 0, 0, 0, -1, 0))
            sitk.WriteImage(image, target)
    assert predict(model, inputs, tmp_path / "ours").written == ["a", "b", "c.d"]
    predict_with_nnunet(model, inputs, tmp_path / "theirs", (0, 1))
    assert same_segmentations(tmp_path / "ours", tmp_path / "theirs", ending) > 50
    beside = [sorted(path.name for path in (tmp_path / at).glob("*.json")) for at in ("ours", "theirs")]
    assert set(beside[1]) - set(beside[0]) == {"predict_from_raw_data_args.json"}


def test_a_zip_gives_the_voxels_of_its_folder(trained_folders: TrainedFolders, images: Path, tmp_path: Path) -> None:
    model = trained_folders.model("2d")
    within = f"{model.parent.name}/{model.name}"
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"):
            file.write(model / name, f"{within}/{name}")
    predict(archive, images, tmp_path / "of_zip")
    predict(model, images, tmp_path / "of_folder")
    assert same_segmentations(tmp_path / "of_zip", tmp_path / "of_folder") > 100
    records = [json.loads((tmp_path / folder / "predict.json").read_text()) for folder in ("of_zip", "of_folder")]
    assert records[0]["weights"] == records[1]["weights"]


def test_what_is_done_stays_and_the_rest_follows(trained_folders: TrainedFolders, images: Path, tmp_path: Path) -> None:
    model, output = trained_folders.model("2d"), tmp_path / "out"
    predict(model, images, output, folds=("0",))
    whole = {path.name: path.read_bytes() for path in output.glob("*.nii.gz")}
    (output / "b.nii.gz").unlink()
    (output / "a.nii.gz").write_bytes(b"as it was")
    (output / ".partial_killed").mkdir()
    (output / ".partial_killed" / "b.nii.gz").write_bytes(b"half")
    assert predict(model, images, output, folds=("0",)).written == ["b"]
    assert (output / "a.nii.gz").read_bytes() == b"as it was"
    assert predict(model, images, output, folds=("0",), overwrite=True).written == ["a", "b", "c.d"]
    assert {path.name: path.read_bytes() for path in output.glob("*.nii.gz")} == whole
    assert sorted(path.name for path in output.iterdir() if path.name not in whole) == [
        "dataset.json",
        "plans.json",
        "predict.json",
    ]


def test_a_folder_of_other_segmentations_is_refused(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path
) -> None:
    model, output = trained_folders.model("2d"), tmp_path / "out"
    predict(model, images / "a_0000.nii.gz", output, folds=("0",))
    with pytest.raises(Exception, match=r"made with other folds and weights \(predict.json\); give another folder"):
        predict(model, images, output)
    assert predict(model, images, output, overwrite=True).written == ["a", "b", "c.d"]
    with pytest.raises(Exception, match=r"made with other folds and weights .*; give another folder$"):
        predict(model, images / "a_0000.nii.gz", output, folds=("0",), overwrite=True)
    shutil.rmtree(output)
    output.mkdir()
    (output / "x.nii.gz").touch()
    with pytest.raises(Exception, match=r"holds x.nii.gz, and no predict.json"):
        predict(model, images, output)
