"""DICOM of several channels: which series belong together, and the voxels of nnU-Net on their images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from pydicom.uid import generate_uid

from fednnunet.dicom.series import read_volume
from fednnunet.errors import ConfigError, DataError
from fednnunet.inference.cases import ImageCase, ModelInput
from fednnunet.inference.dicom_cases import find_dicom_cases, parse_channels
from tests.inference.test_dicom_cases import phantom, predict
from tests.inference.test_prediction import predict_with_nnunet
from tests.support.dicom_series import find_series, phantom_voxels, write_series
from tests.support.trained_models import TrainedFolders

MODEL = ModelInput(("T2", "ADC"), (".nii.gz",), frozenset())
CALLED = parse_channels("adc=*apparent*|*ADC*,T2=t2_tse*", MODEL)


def write_case(folder: Path, names: dict[str, str] | None = None, **options: Any) -> None:
    """Series of one study on one grid: folder below to description."""
    shared = {"study": generate_uid(), "frame_of_reference": generate_uid(), **options}
    for below, description in (names or {"T2": "t2_tse_tra", "ADC": "ep2d_ADC"}).items():
        write_series(folder / below, phantom_voxels(), description=description, **shared)


def described(cases: list[ImageCase]) -> list[list[str | None]]:
    return sorted([None if one is None else one.description for one in case.series] for case in cases)


BOTH = ["t2_tse_tra", "ep2d_ADC"]


def test_a_folder_for_each_channel_needs_no_patterns(tmp_path: Path) -> None:
    for case in ("a", "b"):
        write_case(tmp_path / case)
    found = find_dicom_cases(tmp_path, MODEL)
    assert described(found) == [BOTH, BOTH]
    assert [case.problem for case in found] == [None, None]
    assert [case.name for case in found] == sorted(case.series[0].uid for case in found if case.series[0])
    assert described(find_dicom_cases(tmp_path / "a", MODEL)) == [BOTH]


def test_descriptions_tell_channels_apart_in_each_study(tmp_path: Path) -> None:
    for _ in range(2):  # studies of one patient in one folder, as archives export them
        number = len(list(tmp_path.rglob("*.dcm")))
        write_case(tmp_path / "patient", {f"s{number}": "t2_tse_tra", f"s{number + 1}": "ep2d_ADC"})
    write_series(tmp_path / "patient" / "loc", phantom_voxels(), description="survey")
    found = find_dicom_cases(tmp_path, MODEL, CALLED)
    assert described(found) == [BOTH, BOTH]
    assert [case.problem for case in found] == [None, None]
    with pytest.raises(DataError, match=r"no series for a channel of the model \(T2 and ADC\); it has .*survey"):
        find_dicom_cases(tmp_path, MODEL)


def test_a_channel_that_the_model_does_without_may_lack(tmp_path: Path) -> None:
    write_case(tmp_path / "a")
    write_case(tmp_path / "b", {"T2": "t2_tse_tra"})
    lenient = ModelInput(MODEL.channels, MODEL.endings, frozenset(["ADC"]))
    found = find_dicom_cases(tmp_path, lenient)
    assert [case.problem for case in found] == [None, None]
    assert sorted(case.missing for case in found) == [[], [1]]
    (problem,) = (case.problem for case in find_dicom_cases(tmp_path, MODEL) if case.problem)
    assert "no series fits channel ADC in" in problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"origin": (0.0, 0.0, 0.0)}, "lies on another grid than .*: its origin is"),
        ({"spacing": (0.6, 0.8, 2.0)}, "lies on another grid than .*: its spacing is"),
        ({"frame_of_reference": "1.2.3"}, "in two coordinate systems"),
        ({"patient": ("Roe^Jim", "777")}, "are of two patients"),
        ({"description": "t2_tse_sag"}, "several series fit channel T2"),
    ],
)
def test_series_that_are_no_channels_of_one_image_are_one_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    shared = {"study": generate_uid(), "frame_of_reference": generate_uid()}
    write_series(tmp_path / "a" / "x", phantom_voxels(), description="t2_tse_tra", **shared)
    write_series(tmp_path / "a" / "y", phantom_voxels(), **{"description": "ep2d_ADC", **shared, **changes})
    (case,) = find_dicom_cases(tmp_path, MODEL, CALLED)
    assert case.problem is not None
    assert "\n" not in case.problem
    assert "777" not in case.problem
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(case.problem)


def test_patients_who_lack_a_channel_each_are_two_cases(tmp_path: Path) -> None:
    write_case(tmp_path / "a", {"T2": "t2_tse_tra"}, patient=("Doe^Jane", "1"))
    write_case(tmp_path / "b", {"ADC": "ep2d_ADC"}, patient=("Roe^Jim", "2"))
    (case,) = find_dicom_cases(tmp_path, MODEL)
    assert "are of two patients" in str(case.problem)
    found = find_dicom_cases(tmp_path, ModelInput(MODEL.channels, MODEL.endings, frozenset(MODEL.channels)))
    assert [case.problem for case in found] == [None, None]
    assert sorted(case.missing for case in found) == [[0], [1]]


def test_studies_without_a_coordinate_system_are_not_joined(tmp_path: Path) -> None:
    def without(_: int, dataset: Any) -> None:
        dataset.PatientID = dataset.FrameOfReferenceUID = ""

    one = generate_uid()
    for study, problem in ((one, None), (generate_uid(), "are of two studies and name no coordinate system")):
        shutil.rmtree(tmp_path / "input", ignore_errors=True)
        write_case(tmp_path / "input" / "a", {"T2": "t2_tse_tra"}, study=one, change=without)
        write_case(tmp_path / "input" / "b", {"ADC": "ep2d_ADC"}, study=study, change=without)
        (case,) = find_dicom_cases(tmp_path / "input", MODEL)
        assert (problem or "None") in str(case.problem)


def test_channels_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    write_case(tmp_path)
    with pytest.raises(DataError, match=r"several channels of one name \(MR and MR\).*; give images"):
        find_dicom_cases(tmp_path, ModelInput(("MR", "MR"), (".nii.gz",), frozenset()))


def test_a_series_that_is_no_volume_is_named_only_where_it_is_a_channel(tmp_path: Path) -> None:
    write_case(tmp_path / "a", {"T2": "t2_tse_tra", "ADC": "ep2d_ADC", "z": "dwi"})
    next((tmp_path / "a" / "z").glob("slice_002*")).unlink()
    (case,) = find_dicom_cases(tmp_path, MODEL)
    assert case.problem is None
    next((tmp_path / "a" / "ADC").glob("slice_002*")).unlink()
    (case,) = find_dicom_cases(tmp_path, MODEL)
    assert case.problem is not None
    assert "missing between" in case.problem


def test_series_of_one_channel_are_chosen_by_patterns(tmp_path: Path) -> None:
    write_case(tmp_path)
    one = ModelInput(("MR",), (), frozenset())
    assert len(find_dicom_cases(tmp_path, one)) == 2
    assert described(find_dicom_cases(tmp_path, one, parse_channels("MR=t2*", one))) == [["t2_tse_tra"]]


@pytest.mark.parametrize("text", ["T2=t2*", "T2=a,ADC=b,DWI=c", "T2=a,ADC=", "T2=a,t2=b,ADC=c"])
def test_patterns_are_of_all_channels_of_the_model(text: str) -> None:
    with pytest.raises(ConfigError, match=r"say for each channel .*, such as T2=\*T2\*,ADC=\*ADC\*"):
        parse_channels(text, MODEL)


def test_voxels_are_those_of_nnunet_on_images_of_the_series(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    model = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), model)
    plans, description = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
    for key in ("normalization_schemes", "use_mask_for_norm"):
        plans["configurations"]["2d"][key] *= 2
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities["1"] = intensities["0"]
    description["channel_names"] = {"0": "T2", "1": "ADC"}
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    for layer, tensor in checkpoint["network_weights"].items():
        if tensor.ndim == 4 and tensor.shape[1] == 1:
            checkpoint["network_weights"][layer] = torch.cat([tensor, 0.3 * tensor], 1)
    checkpoint["init_args"] |= {"plans": plans, "dataset_json": description}
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(description))

    shared = {"study": generate_uid(), "frame_of_reference": generate_uid(), "spacing": (0.9, 1.1, 3.0)}
    for seed, name in enumerate(("t2_tse_tra", "ep2d_ADC")):
        write_series(tmp_path / "pacs" / f"s{seed}", phantom(seed), description=name, **shared)
    called = "T2=t2_tse*,ADC=*ADC*"
    (uid,) = predict(model, tmp_path / "pacs", tmp_path / "ours", dicom_seg=True, channels=called).written
    series = {one.description: one for one in find_series(tmp_path / "pacs")}
    assert uid == series["t2_tse_tra"].uid
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("t2_tse_tra", "ep2d_ADC")):
        image = read_volume(series[name]).as_image()
        sitk.WriteImage(image, str(tmp_path / "images" / f"{uid}_{number:04d}.nii.gz"))
    predict_with_nnunet(model, tmp_path / "images", tmp_path / "theirs", (0,))
    assert np.count_nonzero(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ours" / f"{uid}.nii.gz")))) > 50
    assert (tmp_path / "ours" / f"{uid}.dcm").is_file()
    theirs, ours = (sitk.ReadImage(str(tmp_path / at / f"{uid}.nii.gz")) for at in ("theirs", "ours"))
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
