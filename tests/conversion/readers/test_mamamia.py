"""Reader of MAMA-MIA, on a miniature of the published download."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk

from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.conversion.readers.eucanimage import EUCANIMAGE_CENTRES
from fednnunet.conversion.readers.mamamia import MAMAMIA_CENTRES, read_mamamia
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceImage
from fednnunet.errors import ConfigError, DataError
from tests.support.dce_downloads import AXIAL, SAGITTAL, expected_case, phase, write_image, write_patient

PATIENTS = ("DUKE_001", "ISPY1_1001", "ISPY2_125418", "NACT_01")


def test_the_first_phase_after_contrast_is_the_image(download: Path) -> None:
    cases = tuple(expected_case(download, patient, SourceImage(phase(download, patient, 1))) for patient in PATIENTS)
    assert read_mamamia(download) == ScanResult(cases, ("post-contrast 1",))


def test_axial_and_sagittal_volumes_are_taken_as_they_lie(download: Path) -> None:
    directions = {
        case.name: sitk.ReadImage(str(case.channels[0].path)).GetDirection() for case in read_mamamia(download).cases
    }
    assert directions["DUKE_001"] == directions["ISPY2_125418"] == AXIAL
    assert directions["ISPY1_1001"] == directions["NACT_01"] == SAGITTAL


def test_the_subtraction_takes_the_phase_before_contrast_away(download: Path) -> None:
    scan = read_mamamia(download, phases="subtraction")
    assert scan.channel_names == ("post-contrast 1 minus pre-contrast",)
    expected = SourceImage(phase(download, "ISPY1_1001", 1), baseline=phase(download, "ISPY1_1001", 0))
    assert scan.cases[1] == expected_case(download, "ISPY1_1001", expected)


def test_all_phases_are_the_three_that_every_study_has(download: Path) -> None:
    scan = read_mamamia(download, phases="all")
    assert scan.channel_names == ("pre-contrast", "post-contrast 1", "post-contrast 2")
    assert scan.cases == tuple(
        expected_case(download, patient, *(SourceImage(phase(download, patient, number)) for number in range(3)))
        for patient in PATIENTS
    )
    assert not scan.problems + scan.left_out


def test_studies_with_fewer_phases_than_asked_for_are_left_out(download: Path) -> None:
    scan = read_mamamia(download, phases="all", number_of_phases=5)
    assert [case.name for case in scan.cases] == ["DUKE_001", "ISPY2_125418"]
    assert scan.left_out == (
        ConversionIssue("ISPY1_1001", "has 3 phases; --number-of-phases asks for 5", "ISPY1"),
        ConversionIssue("NACT_01", "has 4 phases; --number-of-phases asks for 5", "NACT"),
    )
    assert not scan.problems


def test_one_phase_is_not_all() -> None:
    with pytest.raises(ConfigError, match="--number-of-phases is 1"):
        read_mamamia(Path(), phases="all", number_of_phases=1)


def test_automatic_segmentations_are_a_choice(download: Path) -> None:
    scan = read_mamamia(download, segmentation="automatic")
    masks = "segmentations/automatic"
    assert scan.cases == tuple(
        expected_case(download, patient, SourceImage(phase(download, patient, 1)), masks=masks)
        for patient in PATIENTS[:2]
    )
    assert [issue.name for issue in scan.problems] == ["ISPY2_125418", "NACT_01"]


def test_upper_and_lower_case_of_file_names_are_one(tmp_path: Path) -> None:
    write_patient(tmp_path, "ISPY2_125418", file_case=str.lower)
    write_patient(tmp_path, "duke_001", file_case=str.upper)
    scan = read_mamamia(tmp_path)
    assert [(case.name, case.centre) for case in scan.cases] == [
        ("DUKE_001", "DUKE"),
        ("ISPY2_125418", "ISPY2"),
    ]
    assert scan.cases[1].files == (
        tmp_path / "images/ISPY2_125418/ispy2_125418_0001.nii.gz",
        tmp_path / "segmentations/expert/ispy2_125418.nii.gz",
    )
    assert not scan.problems


@pytest.mark.parametrize(
    "same_name",
    ["images/DUKE_001/duke_001_0001.nii.gz", "segmentations/expert/duke_001.nii.gz", "images/duke_001/x.txt"],
)
def test_files_that_differ_in_case_only_are_a_problem(download: Path, same_name: str) -> None:
    if (download / "IMAGES").exists():
        pytest.skip("this file system does not tell upper from lower case")
    (download / same_name).parent.mkdir(exist_ok=True)
    (download / same_name).write_text("")
    scan = read_mamamia(download)
    assert [issue.name for issue in scan.problems] == ["DUKE_001"]
    assert "differ in upper and lower case only" in scan.problems[0].reason
    assert len(scan.cases) == 3


def test_a_missing_phase_is_a_problem_that_names_the_file(download: Path) -> None:
    phase(download, "ISPY2_125418", 1).unlink()
    scan = read_mamamia(download)
    folder = download / "images/ISPY2_125418"
    assert scan.problems == (
        ConversionIssue("ISPY2_125418", f"{folder} lacks ISPY2_125418_0001.nii.gz: download it again", "ISPY2"),
    )
    assert len(scan.cases) == 3


def test_a_study_cut_short_is_a_problem_not_one_of_fewer_phases(download: Path) -> None:
    for number in (2, 3, 4):
        phase(download, "DUKE_001", number).unlink()
    scan = read_mamamia(download, phases="all", number_of_phases=4)
    assert [issue.name for issue in scan.left_out] == ["ISPY1_1001"]
    assert [issue.name for issue in scan.problems] == ["DUKE_001"]
    assert "lacks DUKE_001_0002.nii.gz and DUKE_001_0003.nii.gz" in scan.problems[0].reason


def test_a_subtraction_without_the_phase_before_contrast_is_a_problem(download: Path) -> None:
    phase(download, "NACT_01", 0).unlink()
    assert len(read_mamamia(download).cases) == 4
    (problem,) = read_mamamia(download, phases="subtraction").problems
    assert "NACT_01_0000.nii.gz" in problem.reason


def test_a_missing_mask_is_a_problem_that_names_the_file(download: Path) -> None:
    mask = download / "segmentations/expert/NACT_01.nii.gz"
    mask.unlink()
    scan = read_mamamia(download)
    assert scan.problems == (
        ConversionIssue("NACT_01", f"{mask} is missing, its images are there: download it too", "NACT"),
    )
    assert len(scan.cases) == 3


def test_a_mask_without_images_is_a_problem(download: Path) -> None:
    write_image(download / "segmentations/expert/DUKE_002.nii.gz", 1)
    scan = read_mamamia(download)
    missing = download / "images/DUKE_002"
    assert scan.problems == (
        ConversionIssue("DUKE_002", f"{missing} is missing, its label map is there: download it too", "DUKE"),
    )


def test_an_unknown_cohort_is_a_problem(download: Path) -> None:
    write_patient(download, "TCGA_01")
    scan = read_mamamia(download)
    assert scan.problems == (ConversionIssue("TCGA_01", "its id begins with none of ISPY1, ISPY2, DUKE, NACT"),)
    assert len(scan.cases) == 4


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
    scan = read_mamamia(download)
    reason = "is not named DUKE_001_000N.nii.gz, N the phase"
    assert scan.left_out == tuple(ConversionIssue(str(path), reason, "DUKE") for path in strangers)
    assert len(scan.cases) == 4


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


def test_an_empty_folder_of_segmentations_is_named(download: Path) -> None:
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
    configured = configured_dataset("mamamia").centres
    assert tuple(centre.name for centre in configured if not centre.external) == MAMAMIA_CENTRES
    assert tuple(centre.name for centre in configured if centre.external) == EUCANIMAGE_CENTRES
