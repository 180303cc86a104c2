"""What cannot be segmented is said in one line, and nothing is left half-written."""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from typer.testing import CliRunner

from fednnunet.cli.main import app
from fednnunet.errors import FednnUNetError
from fednnunet.inference.prediction import Prediction, Settings
from fednnunet.inference.run import Progress
from tests.support.disks import disk_at, filled
from tests.support.trained_models import TrainedFolders

CPU = torch.device("cpu")


@pytest.fixture
def images(trained_folders: TrainedFolders, tmp_path: Path) -> Path:
    """Three cases of the model's own kind."""
    folder = tmp_path / "images"
    folder.mkdir()
    source = sorted((trained_folders.raw / "imagesTr").iterdir())[0]
    for name in "abc":
        shutil.copy(source, folder / f"{name}_0000.nii.gz")
    return folder


def predict(model: Path, inputs: Path, output: Path) -> dict[str, str]:
    return Prediction.of(model, [inputs], output, Settings(folds=("0",)), CPU).run(Progress()).failed


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def no_image(path: Path) -> None:
    path.write_bytes(gzip.compress(b"no image"))


def not_finite(path: Path) -> None:
    """NRRD: its reader keeps NaN, that of NIfTI does not."""
    image = sitk.ReadImage(str(path))
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    changed = sitk.GetImageFromArray(voxels)
    changed.CopyInformation(image)
    path.unlink()
    sitk.WriteImage(changed, str(path).replace(".nii.gz", ".nrrd"))


def second_channel(path: Path) -> None:
    shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))


def same_channel_twice(path: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".nrrd"))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (cut_off, "b_0000.nii.gz is cut off"),
        (no_image, "b_0000.nii.gz cannot be read"),
        (not_finite, "b_0000.nrrd holds NaN or infinity"),
        (second_channel, r"b_0001.nii.gz is one channel more than the model takes: 1 channel \(MRI\)"),
        (same_channel_twice, "b_0000.nii.gz and b_0000.nrrd are the same channel"),
    ],
)
def test_a_case_that_fails_is_named_and_the_others_go_on(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path, break_it: Callable[[Path], None], said: str
) -> None:
    break_it(images / "b_0000.nii.gz")
    result = CliRunner().invoke(
        app, ["predict", str(trained_folders.model("2d")), str(images), str(tmp_path / "out"), "--fold", "0"]
    )
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(said, line), line
    assert "2 of 3 cases segmented, 1 failed: b" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("[!dp]*")) == ["a.nii.gz", "c.nii.gz"]


def test_the_command_says_what_it_has_done(trained_folders: TrainedFolders, images: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(trained_folders.model("2d")), str(images), str(tmp_path / "out"), "--fold", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["a  1/3", "b  2/3", "c  3/3", f"3 of 3 cases segmented: {tmp_path / 'out'}"]
    (tmp_path / "out" / "b.nii.gz").unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.stdout.splitlines() == ["b  1/1", f"1 of 3 cases segmented, 2 were there: {tmp_path / 'out'}"]
    assert not result.stderr


def test_output_that_is_not_finite_is_no_segmentation(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path
) -> None:
    model = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), model)
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    next(iter(checkpoint["network_weights"].values())).fill_(torch.nan)
    torch.save(checkpoint, path)
    failed = predict(model, images, tmp_path / "out")
    assert list(failed) == ["a", "b", "c"]
    assert failed["a"].startswith("the model's output for a is NaN or infinite")
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_input_without_cases_is_said_before_anything_is_written(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path
) -> None:
    empty, pngs, unnumbered = (tmp_path / name for name in ("empty", "pngs", "unnumbered"))
    for folder in (empty, pngs, unnumbered):
        folder.mkdir()
    (pngs / "a_0000.png").touch()
    shutil.copy(images / "a_0000.nii.gz", unnumbered / "a.nii.gz")
    for inputs, said in (
        (tmp_path / "none", "there is no .*none; give a folder of images"),
        (empty, r"empty holds no images; the model takes files named CASE_0000.nii.gz$"),
        (pngs, r"holds .png images, and the model takes .nii.gz, .gipl, .mha and .nrrd; convert them"),
        (unnumbered, r"a.nii.gz has no number of a channel in its name; name images CASE_0000.nii.gz"),
    ):
        with pytest.raises(FednnUNetError, match=said):
            predict(trained_folders.model("2d"), inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_one_line(
    trained_folders: TrainedFolders, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FednnUNetError, match="is, or lies below, a file"):
            predict(trained_folders.model("2d"), images, output)


def test_a_full_disk_leaves_nothing_half_written(trained_folders: TrainedFolders, images: Path, tmp_path: Path) -> None:
    with disk_at(tmp_path / "disk", 1) as disk, contextlib.ExitStack() as stack:
        out = disk / "out"

        class FillsDisk(Progress):
            def on_case(self, case: str) -> None:
                if case == "a":
                    stack.enter_context(filled(disk))

        prediction = Prediction.of(trained_folders.model("2d"), [images], out, Settings(folds=("0",)), CPU)
        with pytest.raises(FednnUNetError, match="out cannot be written: "):
            prediction.run(FillsDisk())
        there = sorted(path.name for path in out.iterdir())
        assert there == ["a.nii.gz", "dataset.json", "plans.json", "predict.json"]
