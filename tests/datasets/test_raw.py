"""The nnUNet_raw contract: what is found, and how a broken dataset is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from skimage.io import imsave
from tifffile import imwrite

from fednnunet.datasets.raw import check_images, find_dataset, raw_digest, read_dataset, stage_dataset
from fednnunet.errors import DataError


def change_description(folder: Path, **fields: Any) -> None:
    path = folder / "dataset.json"
    description = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], spacing: tuple[float, ...] | None = None) -> None:
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(spacing or image.GetSpacing())
    sitk.WriteImage(changed, str(path))


def test_dataset_is_found_by_id_name_and_path(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    for dataset in (101, "101", "Dataset101_Boxes", str(folder)):
        assert find_dataset(dataset, folder.parent, "A") == folder
    hyphened = make_dataset(name="Dataset102_MAMA-MIA")
    assert find_dataset(102, folder.parent, "A") == hyphened


def test_raw_folder_comes_from_nnunets_variable(
    make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset()
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    assert find_dataset(101, None, "A") == folder


def test_folder_of_another_name_is_refused(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(name="Boxes")
    with pytest.raises(DataError, match=r"centre A: .*Boxes must be named DatasetXXX_Name"):
        find_dataset(str(folder), None, "A")


def test_missing_dataset_is_told_with_what_is_there(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    with pytest.raises(DataError, match=r"centre Oslo: dataset 7 is not in .* Dataset101_Boxes"):
        find_dataset(7, folder.parent, "Oslo")


def test_ambiguous_id_is_refused(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    make_dataset(name="Dataset101_Other")
    with pytest.raises(DataError, match=r"ambiguous.*Dataset101_Boxes, Dataset101_Other"):
        find_dataset(101, folder.parent, "A")


def test_ids_need_a_raw_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(DataError, match=r"centre A: dataset 101 .* nnUNet_raw"):
        find_dataset(101, None, "A")


def test_cases_are_those_that_nnunet_reads(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = read_dataset(make_dataset(), "A")
    check_images(dataset, "A")
    staged = stage_dataset(dataset, tmp_path / "staged")
    theirs = get_filenames_of_train_images_and_targets(str(staged))
    assert theirs == {
        case.name: {"images": [str(path) for path in case.images], "label": str(case.label)} for case in dataset.cases
    }
    assert json.loads((staged / "dataset.json").read_text())["numTraining"] == 6
    assert read_dataset(staged, "A").cases == dataset.cases


def test_links_are_staged_under_their_own_name(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset()
    for path in [*folder.glob("*/*.nii.gz")]:  # as caches and version control store files: the name is the link's
        path.rename(tmp_path / path.name.replace(".", "-"))
        path.symlink_to(tmp_path / path.name.replace(".", "-"))
    staged = stage_dataset(read_dataset(folder, "A"), tmp_path / "staged")
    check_images(read_dataset(staged, "A"), "A")


def test_staging_leaves_a_folder_with_images_alone(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(DataError, match="holds images"):
        stage_dataset(read_dataset(folder, "A"), folder.parent)
    assert (folder / "dataset.json").read_bytes() == before


def test_listed_files_are_found_by_environment_variable_and_relative_path(
    make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset()
    cases = read_dataset(folder, "A").cases
    monkeypatch.setenv("SCANS", str(folder / "imagesTr"))
    listed = {
        case.name: {"images": [f"${{SCANS}}/{case.images[0].name}"], "label": f"labelsTr/{case.label.name}"}
        for case in cases
    }
    change_description(folder, dataset=listed)
    assert read_dataset(folder, "A").cases == cases
    theirs = get_filenames_of_train_images_and_targets(str(folder))
    assert [[str(path) for path in case.images] for case in cases] == [theirs[case.name]["images"] for case in cases]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ([], "case_000 must have images"),
        ({"images": "a_0000.nii.gz", "label": "a.nii.gz"}, "case_000 must have images"),
        ({"images": ["a_0000.nii.gz"]}, "case_000 must have images"),
        ({"images": ["a_0000.mha"], "label": "a.nii.gz"}, "a_0000.mha has another file ending than .nii.gz"),
        ({"images": ["a_0000.nii.gz", "a_0001.nii.gz"], "label": "a.nii.gz"}, "case_000 has 2 images"),
        ({"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}, "a_0000.nii.gz is missing"),
    ],
)
def test_broken_entry_of_listed_files_is_named(make_dataset: Callable[..., Path], entry: Any, problem: str) -> None:
    folder = make_dataset()
    change_description(folder, dataset={"case_000": entry})
    with pytest.raises(DataError, match=f"centre Oslo: .*{problem}"):
        read_dataset(folder, "Oslo")


REFUSED_LABELS = [
    ({"background": 0, "tumour": 1, "ignore": 3}, "label ignore must have the highest value, 2"),
    ({"background": 0, "tumour": 1, "ignore": [2]}, "label ignore has value"),
    ({"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order, a list of 2"),
    ({"background": 0, "tumour": 2}, "without a gap; they are 0, 2"),
    ({"background": 0, "tumour": "1"}, "label tumour has value '1'"),
    ({"background": 0, "tumour": []}, "label tumour has value"),
]


@pytest.mark.parametrize(("labels", "problem"), REFUSED_LABELS)
def test_labels_that_can_not_be_trained_on_are_told(
    make_dataset: Callable[..., Path], labels: dict[str, Any], problem: str
) -> None:
    folder = make_dataset()
    change_description(folder, labels=labels)
    with pytest.raises(DataError, match=f"centre Oslo: .*dataset.json: .*{problem}"):
        read_dataset(folder, "Oslo")


@pytest.mark.parametrize("labels", [labels for labels, _ in REFUSED_LABELS[:3]])
def test_nnunet_refuses_these_labels_as_well(labels: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        LabelManager(labels, None)


def test_files_of_another_ending_may_lie_beside_the_same_cases(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    (folder / "imagesTr" / "case_003_0000.nrrd").touch()
    (folder / "imagesTr" / "case_003_0000.json").touch()
    assert len(read_dataset(folder, "A").cases) == 6
    (folder / "imagesTr" / "case_006_0000.nrrd").touch()
    with pytest.raises(DataError, match=r"centre A: .*case_006_0000.nrrd has another file ending"):
        read_dataset(folder, "A")


def test_digest_follows_the_files(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    before = raw_digest(read_dataset(folder, "A"))
    assert raw_digest(read_dataset(folder, "A")) == before
    rewrite(folder / "labelsTr" / "case_002.nii.gz", lambda label: label * 0)
    assert raw_digest(read_dataset(folder, "A")) != before


def test_digest_follows_the_spacing_beside_tif_volumes(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    for path in [*folder.glob("*/*.nii.gz")]:
        imwrite(path.with_name(path.name.replace(".nii.gz", ".tif")), sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
        path.unlink()
    change_description(folder, file_ending=".tif")
    digests = [raw_digest(read_dataset(folder, "A"))]
    for part in ("images", "labels"):
        (folder / f"{part}Tr" / "case_002.json").write_text('{"spacing": [3, 1, 1]}')
        digests.append(raw_digest(read_dataset(folder, "A")))
    assert len(set(digests)) == 3


def break_nothing_left(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.unlink()
    for path in (folder / "labelsTr").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda f: (f / "dataset.json").unlink(), "dataset.json is missing"),
        (lambda f: (f / "dataset.json").write_text("{"), "dataset.json is not JSON"),
        (lambda f: change_description(f, file_ending=None), "no field file_ending"),
        (lambda f: change_description(f, labels={"tumour": 1}), "background to 0"),
        (break_nothing_left, "holds no case"),
        (lambda f: (f / "dataset.json").write_text("[]"), "must be a JSON object"),
        (lambda f: change_description(f, channel_names=["MRI"]), "channel_names must map"),
        (lambda f: change_description(f, file_ending=7), "file_ending must be text"),
        (lambda f: change_description(f, file_ending=".mha"), "_0000.nii.gz has another file ending than .mha"),
        (
            lambda f: (f / "imagesTr" / "case_003_0000.nii.gz").rename(f / "imagesTr" / "case_003.nii.gz"),
            "case_003.nii.gz has no channel number",
        ),
        (
            lambda f: (f / "imagesTr" / "case_003_0001.nii.gz").touch(),
            "case_003_0001.nii.gz is a channel that channel_names in dataset.json lacks",
        ),
        (lambda f: (f / "labelsTr" / "case_003.nii.gz").unlink(), "case_003.nii.gz is missing"),
        (lambda f: (f / "imagesTr" / "case_003_0000.nii.gz").unlink(), "case_003.nii.gz has no image"),
        (lambda f: change_description(f, channel_names={"0": "T1", "1": "T2"}), "_0001.nii.gz is missing"),
    ],
)
def test_broken_folders_are_named_by_centre_and_file(
    make_dataset: Callable[..., Path], break_it: Callable[[Path], object], problem: str
) -> None:
    folder = make_dataset()
    break_it(folder)
    with pytest.raises(DataError, match=f"centre Oslo: .*{problem}"):
        read_dataset(folder, "Oslo")


def test_too_few_cases_for_five_folds_are_refused_unless_external(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(cases=4)
    with pytest.raises(DataError, match=r"4 training cases; .* needs 5"):
        read_dataset(folder, "A")
    assert len(read_dataset(folder, "A", external=True).cases) == 4


@pytest.mark.parametrize(
    ("file", "change", "spacing", "problem"),
    [
        (
            "imagesTr/case_001_0000.nii.gz",
            lambda a: a[:-1],
            None,
            "shape 5 x 40 x 40, its label .* 6 x 40 x 40",
        ),
        ("imagesTr/case_001_0000.nii.gz", lambda a: a, (1.0, 1.0, 2.0), "spacing 2 x 1 x 1 mm"),
        ("labelsTr/case_001.nii.gz", lambda a: a * 3, None, "value 3, which labels .* does not name"),
    ],
)
def test_images_that_do_not_fit_are_named(
    make_dataset: Callable[..., Path],
    file: str,
    change: Callable[[np.ndarray], np.ndarray],
    spacing: tuple[float, ...] | None,
    problem: str,
) -> None:
    folder = make_dataset()
    rewrite(folder / file, change, spacing)
    with pytest.raises(DataError, match=f"centre Oslo: .*case_001.*{problem}"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_nan_in_an_image_is_named(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()  # ITK reads NaN in NIfTI as 0; MetaImage keeps it
    for path in [*folder.glob("*/*.nii.gz")]:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        if path.name == "case_001_0000.nii.gz":
            values[0, 0, 0] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path).replace(".nii.gz", ".mha"))
    change_description(folder, file_ending=".mha")
    with pytest.raises(DataError, match=r"centre Oslo: .*case_001_0000.mha holds NaN"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


@pytest.mark.parametrize("file", ["imagesTr/case_000_0000.nii.gz", "imagesTr/case_004_0000.nii.gz"])
def test_unreadable_image_is_named(
    make_dataset: Callable[..., Path], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset()
    (folder / file).write_bytes(b"not an image")
    with pytest.raises(DataError, match=rf"centre Oslo: .*{file} cannot be read"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")
    assert "Traceback" not in capsys.readouterr().err


def test_shifted_label_is_a_warning(make_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = make_dataset()
    path = str(folder / "labelsTr" / "case_002.nii.gz")
    label = sitk.ReadImage(path)
    label.SetOrigin((5.0, 0.0, 0.0))
    sitk.WriteImage(label, path)
    with caplog.at_level(logging.WARNING):
        check_images(read_dataset(folder, "Oslo"), "Oslo")
    (message,) = caplog.messages
    assert message.startswith("centre Oslo: image and label differ in origin in 1 cases, the first case_002;")


def test_progress_counts_cases(make_dataset: Callable[..., Path]) -> None:
    done: list[int] = []
    check_images(read_dataset(make_dataset(), "A"), "A", progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]


def write_pngs(folder: Path, shape: tuple[int, ...]) -> None:
    for path in [*folder.glob("*/*.nii.gz")]:
        is_label = path.parent.name == "labelsTr"
        imsave(
            path.with_name(path.name.replace(".nii.gz", ".png")),
            np.zeros(shape[:2] if is_label else shape, dtype=np.uint8),
            check_contrast=False,
        )
        path.unlink()


def test_one_rgb_file_holds_three_channels(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    write_pngs(folder, (20, 24, 3))
    change_description(folder, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})
    dataset = read_dataset(folder, "A")
    assert [len(case.images) for case in dataset.cases] == [1] * 6
    check_images(dataset, "A")


def test_channels_missing_in_a_file_are_named(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    write_pngs(folder, (20, 24))
    change_description(folder, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})
    with pytest.raises(DataError, match=r"case_000_0000.png has 1 channels, channel_names in dataset.json 3"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_region_and_ignore_labels_are_allowed(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    change_description(folder, labels=labels, regions_class_order=[1, 2])
    rewrite(folder / "labelsTr" / "case_001.nii.gz", lambda label: label * 3)
    check_images(read_dataset(folder, "A"), "A")
