"""``fednnunet convert``: from a download to a dataset that trains."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.cli.convert import CONVERTERS, Converter, command_of
from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.conversion.manifest import read_manifest
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.dicom.segmentation import write_segmentation
from tests.conversion.test_writer import content
from tests.support.cine_downloads import make_acdc, make_mnms1, make_mnms2
from tests.support.command_line import CommandLine
from tests.support.dce_downloads import write_image, write_patient
from tests.support.dicom_series import find_series, phantom_labels, phantom_voxels, write_series
from tests.support.image_cases import SHAPE, change_voxels, voxels, write

COHORTS = {"ISPY1": 501, "ISPY2": 502, "DUKE": 503, "NACT": 504}


@pytest.fixture
def convert(fednnunet: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "200")
    return partial(fednnunet, "convert")


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """MAMA-MIA with five patients a cohort, one of them without a mask."""
    root = tmp_path / "mama_mia"
    for cohort in COHORTS:
        for number in range(5):
            write_patient(root, f"{cohort}_{number:03d}")
    write_patient(root, "DUKE_005")
    (root / "segmentations/expert/DUKE_005.nii.gz").unlink()
    return root


def test_a_dry_run_shows_everything_and_writes_nothing(
    convert: CommandLine, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(tmp_path)
    assert convert("mamamia", download, tmp_path / "raw", "--dry-run") == 0
    assert content(tmp_path) == before
    printed = capsys.readouterr().out
    for cohort, number in COHORTS.items():
        assert f"Dataset{number}_MAMAMIA_{cohort}" in printed
    assert "problem: DUKE: DUKE_005" in printed
    assert "171" in printed  # of ISPY1 in the paper


def test_a_problem_stops_the_command_and_a_skipped_one_is_listed(
    convert: CommandLine, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("mamamia", download, tmp_path / "raw") == 2
    assert "DUKE_005" in capsys.readouterr().err
    assert convert("mamamia", download, tmp_path / "raw", "--on-error", "skip", "--processes", 2) == 0
    printed = capsys.readouterr().out
    raw = tmp_path / "raw"
    assert f"Train: python train.py strategy=asym dataset=mamamia_public dataset.raw_folder={raw}" in printed
    assert [entry.name for entry in read_manifest(raw / "Dataset503_MAMAMIA_DUKE").skipped] == ["DUKE_005"]
    for cohort, number in COHORTS.items():
        dataset = read_dataset(raw / f"Dataset{number}_MAMAMIA_{cohort}", cohort)
        assert len(dataset.cases) == 5
        assert dataset.labels == {"background": 0, "tumour": 1}


def test_readers_options_are_the_commands(convert: CommandLine, download: Path, tmp_path: Path) -> None:
    write_image(download / "segmentations/expert/DUKE_005.nii.gz", 1)
    assert convert("mamamia", download, tmp_path / "raw", "--phases", "all", "--number-of-phases", 2) == 0
    folder = tmp_path / "raw" / "Dataset501_MAMAMIA_ISPY1"
    assert read_dataset(folder, "ISPY1").channel_names == {"0": "pre-contrast", "1": "post-contrast 1"}
    assert read_manifest(folder).settings["number_of_phases"] == 2
    assert convert("mamamia", download, tmp_path / "raw", "--phases", "second") == 2


@pytest.mark.parametrize("converter", CONVERTERS, ids=lambda converter: converter.name)
def test_every_converter_has_a_help_text_for_every_option(
    converter: Converter, convert: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(converter.name, "--help") == 0
    assert f"convert {converter.name} [OPTIONS] SRC DST" in capsys.readouterr().out
    assert command_of(converter).__doc__
    for annotation in command_of(converter).__annotations__.values():
        assert annotation.__metadata__[0].help


def test_notes_are_counted_and_a_case_of_four_dimensions_is_skipped(
    convert: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image_ncct,label,centre"]
    for case in ("a", "b", "c"):
        image, label = tmp_path / f"{case}.nii.gz", tmp_path / f"{case}_seg.nii.gz"
        write(voxels(), image)
        write(np.zeros(SHAPE, np.uint8), label)
        lines.append(f"{image},{label},Oslo")
    change_voxels(label, lambda array: np.stack([array] * 2, -1))
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    command = ("generic", tmp_path / "cases.csv", tmp_path / "raw", "--labels", "tumour=1", "--processes", 1)
    assert convert(*command) == 2
    assert f"Oslo: c: {label} has 4 dimensions, 10 x 12 x 6 x 2" in capsys.readouterr().err
    assert convert(*command, "--on-error", "skip") == 0
    printed = capsys.readouterr().out
    assert "note: Oslo: 2 cases, the first a: the label map is empty\n" in printed
    assert f"skipped: Oslo: c: {label} has 4 dimensions" in printed
    assert "note: nnU-Net normalises channel ncct like MR" in printed


def values_in(path: Path) -> set[int]:
    return set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).tolist())


def test_cardiac_datasets_share_labels_and_keep_patients_together(convert: CommandLine, tmp_path: Path) -> None:
    make_mnms1(tmp_path / "mnms" / "OpenDataset")
    make_mnms2(tmp_path / "mnms" / "MnM2")
    make_acdc(tmp_path / "acdc")
    raw = tmp_path / "raw"
    assert convert("mnms", tmp_path / "mnms", raw, "--duplicates", "keep", "--on-error", "skip") == 0
    assert convert("acdc", tmp_path / "acdc", raw) == 0
    centres = {centre.name: centre for centre in configured_dataset("mnms").centres}
    frames = read_manifest(raw / str(centres["Vall d'Hebron"].dataset)).cases
    assert {record.patient for record in frames.values()} >= {"A0S9V9"}
    assert {"A0S9V9_ED", "A0S9V9_ES"} <= set(frames)
    label = raw / str(centres["Vall d'Hebron"].dataset) / "labelsTr" / "A0S9V9_ES.nii.gz"
    assert values_in(label) == {0, 3}  # 3 is RV in M&Ms
    acdc = read_dataset(raw / str(centres["ACDC"].dataset), "ACDC", external=True)
    check_images(acdc, "ACDC")
    assert values_in(acdc.cases[0].label) == {3}  # what ACDC numbers 1


def test_fetal_ultrasound_becomes_grey_pngs(convert: CommandLine, aimix: Path, acouslic: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    assert convert("aimix", aimix, raw) == 0
    assert convert("acouslic", acouslic, raw) == 0
    for centre in configured_dataset("aimix").centres:
        folder = raw / str(centre.dataset)
        images = sorted((folder / ("imagesTs" if centre.external else "imagesTr")).iterdir())
        assert images
        for image in images:
            header = sitk.ReadImage(str(image))
            assert header.GetPixelID() == sitk.sitkUInt8
            assert header.GetDimension() == 2
        labels = (folder / ("labelsTs" if centre.external else "labelsTr")).iterdir()
        assert set.union(*map(values_in, labels)) == {0, 1}
    check_images(read_dataset(raw / "Dataset525_ACOUSLIC_SierraLeone", "Sierra Leone", external=True), "Sierra Leone")


def test_dicom_series_become_a_dataset_that_is_not_written_twice(
    convert: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("c1", "c2"):
        write_series(tmp_path / "src" / case / "scan", phantom_voxels(), modality="CT", patient=("", case))
        series = find_series(tmp_path / "src" / case / "scan")[0]
        write_segmentation(tmp_path / "src" / case / "seg.dcm", phantom_labels(), series, {"Liver": 1, "GTV": 2})
    arguments = ("dicom", tmp_path / "src", tmp_path / "raw", "--processes", "1", "--name", "Liver")
    assert convert(*arguments) == 2
    assert "structures, and in how many of 2 cases: GTV (2), Liver (2)" in capsys.readouterr().err
    arguments = (*arguments, "--labels", "liver,tumour=GTV*")
    assert convert(*arguments) == 0
    before = content(tmp_path / "raw")
    assert [case.name for case in read_dataset(tmp_path / "raw" / "Dataset601_Liver_src", "src").cases] == ["c1", "c2"]
    for folder, name, array in (("imagesTr", "c1_0000", phantom_voxels()), ("labelsTr", "c1", phantom_labels())):
        image = sitk.ReadImage(tmp_path / "raw" / "Dataset601_Liver_src" / folder / f"{name}.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
        np.testing.assert_allclose(image.GetOrigin(), series.stack.origin)
    assert convert(*arguments) == 0
    assert content(tmp_path / "raw") == before


def test_without_the_extra_for_dicom_the_command_says_what_to_install(
    convert: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert convert("dicom", tmp_path, tmp_path / "raw", "--labels", "liver") == 2
    assert "pip install fednnunet[dicom]" in capsys.readouterr().err
