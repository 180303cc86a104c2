"""DICOM series in, DICOM SEG out: the same voxels in the same place."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from fednnunet.dicom.series import read_volume
from fednnunet.errors import FednnUNetError
from fednnunet.inference.cases import ModelInput
from fednnunet.inference.dicom_cases import find_dicom_cases, holds_dicom, write_seg
from fednnunet.inference.prediction import Prediction, Settings
from fednnunet.inference.run import Outcome, Progress
from tests.inference.test_labels_and_readers import REGIONS
from tests.inference.test_prediction import CPU, predict_with_nnunet
from tests.support.dicom_series import ORIENTATIONS, find_series, write_series
from tests.support.trained_models import TrainedFolders


def phantom(seed: int) -> np.ndarray:
    """Noise with a bright box off the centre, (Z, Y, X), int16."""
    voxels = np.random.default_rng(seed).normal(100, 10, (8, 44, 36))
    voxels[2:5, 8:22, 5:16] += 60
    return voxels.astype(np.int16)


def predict(model: Path, inputs: Path, output: Path, **settings: Any) -> Outcome:
    return Prediction.of(model, [inputs], output, Settings(folds=("0",), **settings), CPU).run(Progress())


def test_segmentations_of_series_lie_where_their_voxels_are(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    model, source, output = trained_folders.model("2d"), tmp_path / "pacs", tmp_path / "out"
    for seed, name in enumerate(("axial", "sagittal", "oblique")):
        write_series(source / name, phantom(seed), orientation=ORIENTATIONS[name], spacing=(0.9, 1.1, 3.0))
    outcome = predict(model, source, output, dicom_seg=True)
    series = {one.uid: one for one in find_series(source)}
    assert sorted(outcome.written) == sorted(series)
    assert len(series) == 3

    images = tmp_path / "images"
    images.mkdir()
    for uid, one in series.items():
        sitk.WriteImage(read_volume(one).as_image(), str(images / f"{uid}_0000.nii.gz"))
    predict_with_nnunet(model, images, tmp_path / "theirs", (0,))
    for uid, one in series.items():
        theirs = sitk.ReadImage(str(tmp_path / "theirs" / f"{uid}.nii.gz"))
        ours = sitk.ReadImage(str(output / f"{uid}.nii.gz"))
        expected = sitk.GetArrayFromImage(theirs)
        assert np.array_equal(sitk.GetArrayFromImage(ours), expected)
        assert 0 < expected.mean() < 1
        assert np.allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-6)
        assert np.allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=1e-4)
        found = highdicom.seg.segread(output / f"{uid}.dcm").get_volume(combine_segments=True)
        slices = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in one.files])
        placed = found.match_geometry(slices)
        order = [0] if np.allclose(slices.position, one.positions[0]) else [-1]
        assert np.array_equal(placed.array if order == [0] else placed.array[::-1], expected)


def test_a_series_that_is_no_volume_is_named_and_the_others_go_on(
    trained_folders: TrainedFolders, tmp_path: Path
) -> None:
    write_series(tmp_path / "pacs" / "whole", phantom(0))
    write_series(tmp_path / "pacs" / "gap", phantom(1))[3].unlink()
    outcome = predict(trained_folders.model("2d"), tmp_path / "pacs", tmp_path / "out")
    assert len(outcome.written) == 1
    (reason,) = outcome.failed.values()
    assert "gap" in reason
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".gz", ".json", ".json", ".json"]


def test_what_a_series_says_of_itself_leads_out_of_no_folder(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    def call(_: int, dataset: pydicom.Dataset) -> None:
        dataset.SeriesInstanceUID = "../precious"

    write_series(tmp_path / "pacs" / "evil", phantom(0), change=call)
    write_series(tmp_path / "pacs" / "nameless", phantom(0), change=lambda _, dataset: dataset.pop("SeriesInstanceUID"))
    precious = [tmp_path / "precious.nii.gz", tmp_path / "pacs" / "nameless.nii.gz"]
    for path in precious:
        path.write_text("mine")
    outcome = predict(trained_folders.model("2d"), tmp_path / "pacs", tmp_path / "out", overwrite=True)
    assert not outcome.written
    assert any("SeriesInstanceUID '../precious' is none" in reason for reason in outcome.failed.values())
    assert len(outcome.failed) == 2
    assert [path.read_text() for path in precious] == ["mine", "mine"]


def test_a_series_of_another_modality_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(0), modality="CT")
    write_series(tmp_path / "mr", phantom(1), modality="MR")
    problems = {
        channel: [case.problem for case in find_dicom_cases(tmp_path, ModelInput((channel,), (), frozenset()))]
        for channel in ("CT", "mr", "T2")
    }
    assert problems["T2"] == [None, None]
    (of_ct,) = filter(None, problems["CT"])
    assert of_ct.endswith("mr is MR, and the model takes CT; leave it out")
    (of_mr,) = filter(None, problems["mr"])
    assert of_mr.endswith("ct is CT, and the model takes mr; leave it out")


def test_images_of_nnunet_are_cases_whatever_lies_beside_them(tmp_path: Path) -> None:
    (slice_, *_) = write_series(tmp_path / "images" / "below", phantom(0))
    assert holds_dicom([tmp_path / "images"])
    assert not holds_dicom([slice_])
    (tmp_path / "images" / "a_0000.nii.gz").touch()
    assert not holds_dicom([tmp_path / "images"])


def test_what_cannot_be_is_said_before_anything_is_written(
    trained_folders: TrainedFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = trained_folders.model("2d"), tmp_path / "out"
    write_series(tmp_path / "pacs", phantom(0))
    images = trained_folders.raw / "imagesTr"
    with pytest.raises(FednnUNetError, match=r"--dicom-seg: .*imagesTr holds no DICOM files"):
        predict(model, images, output, dicom_seg=True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "highdicom" else find_spec(name))
    for settings in ({}, {"dicom_seg": True}):
        with pytest.raises(FednnUNetError, match=r"pip install fednnunet\[dicom\]"):
            predict(model, tmp_path / "pacs", output, **settings)
    monkeypatch.undo()
    with pytest.raises(FednnUNetError, match=r"--channels is for DICOM series, and .*imagesTr holds none"):
        predict(model, images, output, channels="MR=*")
    assert not output.exists()


def test_regions_are_segments_that_overlap(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    model, output = tmp_path / trained_folders.model("2d").name, tmp_path / "out"
    shutil.copytree(trained_folders.model("2d"), model)
    described = json.loads((model / "dataset.json").read_text()) | REGIONS
    (model / "dataset.json").write_text(json.dumps(described))
    write_series(tmp_path / "pacs", phantom(0), spacing=(0.9, 1.1, 3.0))
    (uid,) = predict(model, tmp_path / "pacs", output, dicom_seg=True).written
    labels = np.zeros((8, 44, 36), np.uint8)
    labels[2:6, 8:22, 5:16], labels[3:5, 10:15, 7:9] = 1, 2
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(output / f"{uid}.nii.gz"))
    (case,) = find_dicom_cases(tmp_path / "pacs", ModelInput(("MR",), (), frozenset()))
    write_seg(output / f"{uid}.nii.gz", case, described["labels"])
    (series,) = find_series(tmp_path / "pacs")
    found = highdicom.seg.segread(output / f"{uid}.dcm")
    assert [found.get_segment_description(number).segment_label for number in (1, 2)] == ["whole", "core"]
    masks = found.get_pixels_by_source_instance(list(series.sop_uids), assert_missing_frames_are_empty=True)
    for number, values in enumerate(((1, 2), (2,))):
        assert np.array_equal(masks[..., number], np.isin(labels, values))
    assert (masks.sum(-1) == 2).sum() == 2 * 5 * 2
