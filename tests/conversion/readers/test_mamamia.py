"""Readers of MAMA-MIA and EuCanImage, on miniature trees in the published layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from fednnunet.conversion.readers.mamamia import (
    EUCANIMAGE_CENTRES,
    MAMAMIA_CENTRES,
    read_eucanimage,
    read_mamamia,
)
from fednnunet.conversion.study import ConversionIssue, ScanResult, Source, SourceCase
from fednnunet.errors import ConfigError, DataError

AXIAL = (1, 0, 0, 0, 1, 0, 0, 0, 1)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)
"""Direction cosines: slices run from right to left."""
TUMOUR = {1: "tumour"}


def write_image(path: Path, value: int = 0, direction: tuple[int, ...] = AXIAL) -> Path:
    array = np.zeros((3, 8, 8), dtype=np.uint8)
    array[1, 2:4, 2:4] = value
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.7, 2.0))
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_patient(
    root: Path,
    patient: str,
    phases: int = 3,
    direction: tuple[int, ...] = AXIAL,
    file_case: Callable[[str], str] = str.upper,
    masks: str = "segmentations/expert",
) -> None:
    for phase in range(phases):
        write_image(root / f"images/{patient}/{file_case(patient)}_{phase:04d}.nii.gz", 10 * phase, direction)
    write_image(root / masks / f"{file_case(patient)}.nii.gz", 1, direction)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A patient of each cohort, and what else a download holds; sagittal where ISPY1 and NACT mostly are."""
    root = tmp_path / "mama_mia"
    write_patient(root, "DUKE_001", phases=5)
    write_patient(root, "ISPY1_1001", phases=3, direction=SAGITTAL)
    write_patient(root, "ISPY2_125418", phases=6)
    write_patient(root, "NACT_01", phases=4, direction=SAGITTAL)
    for patient in ("DUKE_001", "ISPY1_1001"):
        write_image(root / f"segmentations/automatic/{patient}.nii.gz", 1)
    for name in (
        "clinical_and_imaging_info.xlsx",
        "train_test_splits.csv",
        "automatic_segmentations_quality_scores.csv",
        "patient_info_files/duke_001.json",
        "nnUNet_pretrained_weights/full_image_dce_mri_tumor_segmentation.zip",
        "images/SYNAPSE_METADATA_MANIFEST.tsv",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    return root


def phase(root: Path, patient: str, number: int) -> Path:
    return root / f"images/{patient}/{patient}_{number:04d}.nii.gz"


def study(root: Path, patient: str, *channels: Source, masks: str = "segmentations/expert") -> SourceCase:
    centre = patient.partition("_")[0]
    return SourceCase(patient, centre, channels, Source(root / masks / f"{patient}.nii.gz"), TUMOUR)


PATIENTS = ("DUKE_001", "ISPY1_1001", "ISPY2_125418", "NACT_01")


def test_the_first_phase_after_contrast_is_the_image(download: Path) -> None:
    studies = tuple(study(download, patient, Source(phase(download, patient, 1))) for patient in PATIENTS)
    assert read_mamamia(download) == ScanResult(studies, ("post-contrast 1",))


def test_axial_and_sagittal_volumes_are_taken_as_they_lie(download: Path) -> None:
    directions = {
        study.case: sitk.ReadImage(str(study.channels[0].path)).GetDirection()
        for study in read_mamamia(download).studies
    }
    assert directions["DUKE_001"] == directions["ISPY2_125418"] == AXIAL
    assert directions["ISPY1_1001"] == directions["NACT_01"] == SAGITTAL


def test_the_subtraction_takes_the_phase_before_contrast_away(download: Path) -> None:
    survey = read_mamamia(download, phases="subtraction")
    assert survey.channel_names == ("post-contrast 1 minus pre-contrast",)
    expected = Source(phase(download, "ISPY1_1001", 1), baseline=phase(download, "ISPY1_1001", 0))
    assert survey.studies[1] == study(download, "ISPY1_1001", expected)


def test_all_phases_are_the_three_that_every_study_has(download: Path) -> None:
    survey = read_mamamia(download, phases="all")
    assert survey.channel_names == ("pre-contrast", "post-contrast 1", "post-contrast 2")
    assert survey.studies == tuple(
        study(download, patient, *(Source(phase(download, patient, number)) for number in range(3)))
        for patient in PATIENTS
    )
    assert not survey.problems + survey.left_out


def test_studies_with_fewer_phases_than_asked_for_are_left_out(download: Path) -> None:
    survey = read_mamamia(download, phases="all", number_of_phases=5)
    assert [study.case for study in survey.studies] == ["DUKE_001", "ISPY2_125418"]
    assert survey.left_out == (
        ConversionIssue("ISPY1_1001", "has 3 phases; --number-of-phases asks for 5", "ISPY1"),
        ConversionIssue("NACT_01", "has 4 phases; --number-of-phases asks for 5", "NACT"),
    )
    assert not survey.problems


def test_one_phase_is_not_all() -> None:
    with pytest.raises(ConfigError, match="--number-of-phases is 1"):
        read_mamamia(Path(), phases="all", number_of_phases=1)


def test_automatic_segmentations_are_a_choice(download: Path) -> None:
    survey = read_mamamia(download, segmentation="automatic")
    masks = "segmentations/automatic"
    assert survey.studies == tuple(
        study(download, patient, Source(phase(download, patient, 1)), masks=masks) for patient in PATIENTS[:2]
    )
    assert [remark.study for remark in survey.problems] == ["ISPY2_125418", "NACT_01"]


def test_upper_and_lower_case_of_file_names_are_one(tmp_path: Path) -> None:
    write_patient(tmp_path, "ISPY2_125418", file_case=str.lower)
    write_patient(tmp_path, "duke_001", file_case=str.upper)
    survey = read_mamamia(tmp_path)
    assert [(study.case, study.centre) for study in survey.studies] == [
        ("DUKE_001", "DUKE"),
        ("ISPY2_125418", "ISPY2"),
    ]
    assert survey.studies[1].files == (
        tmp_path / "images/ISPY2_125418/ispy2_125418_0001.nii.gz",
        tmp_path / "segmentations/expert/ispy2_125418.nii.gz",
    )
    assert not survey.problems


@pytest.mark.parametrize(
    "twin", ["images/DUKE_001/duke_001_0001.nii.gz", "segmentations/expert/duke_001.nii.gz", "images/duke_001/x.txt"]
)
def test_files_that_differ_in_case_only_are_a_problem(download: Path, twin: str) -> None:
    if (download / "IMAGES").exists():
        pytest.skip("this file system does not tell upper from lower case")
    (download / twin).parent.mkdir(exist_ok=True)
    (download / twin).write_text("")
    survey = read_mamamia(download)
    assert [remark.study for remark in survey.problems] == ["DUKE_001"]
    assert "differ in upper and lower case only" in survey.problems[0].reason
    assert len(survey.studies) == 3


def test_a_missing_phase_is_a_problem_that_names_the_file(download: Path) -> None:
    phase(download, "ISPY2_125418", 1).unlink()
    survey = read_mamamia(download)
    folder = download / "images/ISPY2_125418"
    assert survey.problems == (
        ConversionIssue("ISPY2_125418", f"{folder} lacks ISPY2_125418_0001.nii.gz: download it again", "ISPY2"),
    )
    assert len(survey.studies) == 3


def test_a_study_cut_short_is_a_problem_not_one_of_fewer_phases(download: Path) -> None:
    for number in (2, 3, 4):
        phase(download, "DUKE_001", number).unlink()
    survey = read_mamamia(download, phases="all", number_of_phases=4)
    assert [remark.study for remark in survey.left_out] == ["ISPY1_1001"]
    assert [remark.study for remark in survey.problems] == ["DUKE_001"]
    assert "lacks DUKE_001_0002.nii.gz and DUKE_001_0003.nii.gz" in survey.problems[0].reason


def test_a_subtraction_without_the_phase_before_contrast_is_a_problem(download: Path) -> None:
    phase(download, "NACT_01", 0).unlink()
    assert len(read_mamamia(download).studies) == 4
    (problem,) = read_mamamia(download, phases="subtraction").problems
    assert "NACT_01_0000.nii.gz" in problem.reason


def test_a_missing_mask_is_a_problem_that_names_the_file(download: Path) -> None:
    mask = download / "segmentations/expert/NACT_01.nii.gz"
    mask.unlink()
    survey = read_mamamia(download)
    assert survey.problems == (
        ConversionIssue("NACT_01", f"{mask} is missing, its images are there: download it too", "NACT"),
    )
    assert len(survey.studies) == 3


def test_a_mask_without_images_is_a_problem(download: Path) -> None:
    write_image(download / "segmentations/expert/DUKE_002.nii.gz", 1)
    survey = read_mamamia(download)
    missing = download / "images/DUKE_002"
    assert survey.problems == (
        ConversionIssue("DUKE_002", f"{missing} is missing, its label map is there: download it too", "DUKE"),
    )


def test_an_unknown_cohort_is_a_problem(download: Path) -> None:
    write_patient(download, "TCGA_01")
    survey = read_mamamia(download)
    assert survey.problems == (ConversionIssue("TCGA_01", "its id begins with none of ISPY1, ISPY2, DUKE, NACT"),)
    assert len(survey.studies) == 4


def test_files_that_systems_leave_are_not_read(download: Path) -> None:
    before = read_mamamia(download)
    for name in (
        "images/.DS_Store",
        "images/DUKE_001/.DS_Store",
        "images/DUKE_001/._DUKE_001_0001.nii.gz",
        "images/DUKE_001/SYNAPSE_METADATA_MANIFEST.tsv",
        "images/__MACOSX/DUKE_001",
        "segmentations/expert/._DUKE_001.nii.gz",
        "segmentations/expert/Thumbs.db",
    ):
        (download / name).parent.mkdir(exist_ok=True)
        (download / name).write_text("")
    assert read_mamamia(download) == before


def test_images_that_are_no_phase_are_listed(download: Path) -> None:
    strangers = [
        write_image(download / f"images/DUKE_001/{name}.nii.gz") for name in ("DUKE_001_breast", "DUKE_002_0001")
    ]
    survey = read_mamamia(download)
    reason = "is not named DUKE_001_000N.nii.gz, N the phase"
    assert survey.left_out == tuple(ConversionIssue(str(path), reason, "DUKE") for path in strangers)
    assert len(survey.studies) == 4


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (None, "there is no folder"),
        ("DUKE/dicom/1-001.dcm", "there is no folder .*images"),
        ("images/SYNAPSE_METADATA_MANIFEST.tsv", "images holds no folder of a patient"),
        ("images/DUKE_001/DUKE_001_0001.nii.gz", "images is there and .*expert is not: download that too"),
    ],
)
def test_a_wrong_or_partial_download_says_what_is_missing(tmp_path: Path, there: str | None, missing: str) -> None:
    source = tmp_path / "download"
    if there is not None:
        (source / there).parent.mkdir(parents=True)
        (source / there).write_text("")
    with pytest.raises(DataError, match=f"{missing}.*; MAMA-MIA as downloaded from Synapse"):
        read_mamamia(source)


def test_a_folder_of_segmentations_without_one_says_so(download: Path) -> None:
    for mask in (download / "segmentations/expert").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match=r"expert holds no label map \(\.nii\.gz\): download them too"):
        read_mamamia(download)


def test_reading_leaves_the_source_as_it_is(download: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in download.rglob("*")}

    before = state()
    read_mamamia(download, phases="all")
    assert state() == before


def test_centres_are_named_as_in_the_configuration() -> None:
    configured = yaml.safe_load((Path(__file__).parents[3] / "conf/dataset/mamamia.yaml").read_text())["centres"]
    assert tuple(centre["name"] for centre in configured if not centre.get("external")) == MAMAMIA_CENTRES
    assert tuple(centre["name"] for centre in configured if centre.get("external")) == EUCANIMAGE_CENTRES


def centres_of(survey: ScanResult) -> dict[str, str]:
    return {study.case: study.centre for study in survey.studies}


def test_eucanimages_centre_is_what_the_id_begins_with(tmp_path: Path) -> None:
    for patient in ("GUMED_0001", "KAUNO-17", "hcb_003"):
        write_patient(tmp_path, patient, phases=2)
    write_patient(tmp_path, "EUC_001", phases=2)
    survey = read_eucanimage(tmp_path)
    assert centres_of(survey) == {"GUMED_0001": "GUMED", "KAUNO-17": "KAUNO", "HCB_003": "HCB"}
    assert survey.studies[0] == study(tmp_path, "GUMED_0001", Source(phase(tmp_path, "GUMED_0001", 1)))
    (problem,) = survey.problems
    assert problem.study == "EUC_001"
    assert "GUMED, KAUNO, HCB; give a CSV with columns patient and centre by --centres" in problem.reason


def test_eucanimages_channels_are_those_of_mamamia(tmp_path: Path, download: Path) -> None:
    write_patient(tmp_path / "e", "HCB_1", phases=4)
    for phases in ("first", "all", "subtraction"):
        trained = read_mamamia(download, phases=phases).channel_names
        assert read_eucanimage(tmp_path / "e", phases=phases).channel_names == trained


def test_eucanimages_label_maps_may_lie_in_segmentations_itself(tmp_path: Path) -> None:
    write_patient(tmp_path, "HCB_1", phases=2, masks="segmentations")
    assert read_eucanimage(tmp_path).studies[0].label == Source(tmp_path / "segmentations/HCB_1.nii.gz")


def test_eucanimages_centres_may_have_folders(tmp_path: Path) -> None:
    write_patient(tmp_path / "GUMED", "ABC_DEF_S0001", phases=2)
    write_patient(tmp_path / "hcb", "ABC_DEF_S0002", phases=2, masks="segmentations")
    write_patient(tmp_path / "Oslo", "ABC_DEF_S0003", phases=2)
    (tmp_path / "notes").mkdir()
    survey = read_eucanimage(tmp_path)
    assert centres_of(survey) == {"ABC_DEF_S0001": "GUMED", "ABC_DEF_S0002": "HCB"}
    assert survey.problems == (
        ConversionIssue(str(tmp_path / "Oslo"), "its name is none of the centres GUMED, KAUNO, HCB"),
    )


@pytest.mark.parametrize("separator", [",", ";"])
def test_eucanimages_centres_may_stand_in_a_table(tmp_path: Path, separator: str) -> None:
    for number in range(1, 7):
        write_patient(tmp_path / "tree", f"S000{number}", phases=2)
    lines = (
        ("Patient", "age", " Centre"),
        ("s0001", "50", "gumed"),
        ("S0002", "", "HCB "),
        ("S0003", "61", "Oslo"),
        ("S0004", "61", "HCB"),
        ("S0004", "62", "KAUNO"),
        ("S0005", "40"),
        ("", "40", "HCB"),
        ("S0009", "40", "KAUNO"),
    )
    table = tmp_path / "centres.csv"
    table.write_text("\ufeff" + "\r\n".join(separator.join(line) for line in lines), encoding="utf-8")
    survey = read_eucanimage(tmp_path / "tree", centres=table)
    assert centres_of(survey) == {"S0001": "GUMED", "S0002": "HCB"}
    known = "which is none of GUMED, KAUNO, HCB"
    assert survey.problems == (
        ConversionIssue("S0003", f"{table} names the centre 'OSLO' for it, {known}"),
        ConversionIssue("S0004", f"{table} names several centres for it: HCB, KAUNO"),
        ConversionIssue("S0005", f"{table} names the centre '' for it, {known}"),
        ConversionIssue("S0006", f"{table} has no line for it"),
        ConversionIssue(f"{table}, line 8", "names no patient"),
        ConversionIssue("S0009", f"{table} names it; there are neither images nor a label map of it"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("patient,centre\nS1,Łódź".encode("utf-16"), "is no text in UTF-8"),
        (b"", "is empty; its first line must name the columns patient, centre"),
        (b"patient,hospital\nS1,HCB", "has no column centre"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    write_patient(tmp_path, "S1", phases=2)
    if content is not None:
        (tmp_path / "centres.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_eucanimage(tmp_path, centres=tmp_path / "centres.csv")


def test_eucanimages_layout_is_told_where_the_folder_has_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; the EuCanImage reader takes MAMA-MIA's layout"):
        read_eucanimage(tmp_path / "nowhere")
    (tmp_path / "Oslo/images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"neither a folder images nor .*Oslo: its name is none of"):
        read_eucanimage(tmp_path)


def test_eucanimage_studies_without_enough_phases_are_left_out(tmp_path: Path) -> None:
    write_patient(tmp_path, "HCB_1", phases=2)
    write_patient(tmp_path, "HCB_2", phases=3)
    write_patient(tmp_path, "HCB_3", phases=1)
    survey = read_eucanimage(tmp_path, phases="all")
    assert centres_of(survey) == {"HCB_2": "HCB"}
    assert survey.left_out == (ConversionIssue("HCB_1", "has 2 phases; --number-of-phases asks for 3", "HCB"),)
    assert [remark.study for remark in survey.problems] == ["HCB_3"]
