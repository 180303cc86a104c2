"""Reader of M&Ms, on miniatures of the published downloads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.conversion.readers.acdc import read_acdc
from fednnunet.conversion.readers.mnms import read_mnms
from fednnunet.conversion.scan_result import ConversionIssue, SourceImage
from fednnunet.errors import ConfigError, DataError
from tests.support.cine_downloads import (
    LV_FIRST,
    MNMS1,
    MNMS1_CSV,
    MNMS1_HEADER,
    MNMS1_OLD_CSV,
    SHAPE,
    make_acdc,
    make_mnms1,
    make_mnms2,
    mnms1_line,
    noise,
    patients,
    reason_of,
    write_image,
    write_table,
)


@pytest.fixture
def mnms(tmp_path: Path) -> Path:
    make_mnms1(tmp_path / "OpenDataset")
    make_mnms2(tmp_path / "MnM2")
    return tmp_path


EVERYBODY = {
    "A0S9V9": "Vall d'Hebron",
    "B2D9O2": "Sagrada Familia",
    "A5C2D2": "Hamburg",
    "A1K2P5": "Dexeus",
    "Z9Y8X7": "Sant Pau",
    "001": "Dexeus",
    "041": "Vall d'Hebron",
    "172": "Sagrada Familia",
    "321": "Vall d'Hebron",
}
UNANNOTATED = ConversionIssue("C1K9Q8", "M&Ms-1 has no annotation of it (Training/Unlabeled)", "Dexeus")


def test_each_annotated_patient_of_both_releases_gives_two_cases_at_its_hospital(mnms: Path) -> None:
    scan = read_mnms(mnms, duplicates="keep")
    assert patients(scan) == EVERYBODY
    assert [case.name for case in scan.cases] == [f"{p}_{phase}" for p in sorted(EVERYBODY) for phase in ("ED", "ES")]
    assert all(case.label_values == LV_FIRST for case in scan.cases)
    assert (scan.channel_names, scan.file_ending) == (("cineMRI",), ".nii.gz")
    assert scan.problems == ()
    assert scan.left_out == (UNANNOTATED,)


def test_frames_of_mnms1_are_those_of_the_csv_and_mnms2_has_files_of_its_short_axis(mnms: Path) -> None:
    cases = {case.name: case for case in read_mnms(mnms, duplicates="keep").cases}
    folder = mnms / "OpenDataset" / "Training" / "Labeled" / "B2D9O2"
    assert cases["B2D9O2_ED"].channels == (SourceImage(folder / "B2D9O2_sa.nii.gz", 3),)
    assert cases["B2D9O2_ED"].label == SourceImage(folder / "B2D9O2_sa_gt.nii.gz", 3)
    assert cases["B2D9O2_ES"].label == SourceImage(folder / "B2D9O2_sa_gt.nii.gz", 1)
    folder = mnms / "MnM2" / "dataset" / "041"
    assert cases["041_ES"].channels == (SourceImage(folder / "041_SA_ES.nii.gz"),)
    assert cases["041_ES"].label == SourceImage(folder / "041_SA_ES_gt.nii.gz")


def test_names_of_hospitals_are_those_of_the_configuration(mnms: Path, tmp_path: Path) -> None:
    centres = configured_dataset("mnms").centres
    internal = {centre.name for centre in centres if not centre.external}
    assert set(patients(read_mnms(mnms, duplicates="keep")).values()) == internal
    external = {centre.name for centre in centres if centre.external}
    assert set(patients(read_acdc(make_acdc(tmp_path / "acdc"))).values()) == external


def test_csv_of_2020_without_index_serves_and_the_newer_one_comes_first(mnms: Path) -> None:
    root = mnms / "OpenDataset"
    lines = [f"{patient},Siemens,A,1,{row[2]},{row[3]}" for patient, row in MNMS1.items()]
    write_table(root / MNMS1_OLD_CSV, ["External code,VendorName,Vendor,Centre,ED,ES", *lines])
    assert patients(read_mnms(mnms, duplicates="keep")) == EVERYBODY
    (root / MNMS1_CSV).unlink()
    found = patients(read_mnms(mnms, duplicates="keep"))
    assert {found[patient] for patient in MNMS1 if patient in found} == {"Vall d'Hebron"}


def test_releases_may_be_in_two_places(tmp_path: Path) -> None:
    first, second = make_mnms1(tmp_path / "a" / "OpenDataset"), make_mnms2(tmp_path / "b" / "MnM2")
    assert patients(read_mnms(first, mnms2=second, duplicates="keep")) == EVERYBODY


def test_listed_patient_of_both_is_taken_once(mnms: Path) -> None:
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A0S9V9,41"])
    scan = read_mnms(mnms, overlap=overlap)
    assert patients(scan) == {patient: centre for patient, centre in EVERYBODY.items() if patient != "041"}
    assert ConversionIssue("041", "is A0S9V9 of M&Ms-1", "Vall d'Hebron") in scan.left_out
    assert scan.problems == ()


def test_preferred_release_keeps_the_patient_at_the_hospital_that_mnms1_names(mnms: Path) -> None:
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A5C2D2,172"])
    scan = read_mnms(mnms, overlap=overlap, prefer="mnms2")
    assert "A5C2D2" not in patients(scan)
    assert patients(scan)["172"] == "Hamburg"
    assert ConversionIssue("A5C2D2", "is 172 of M&Ms-2", "Hamburg") in scan.left_out


def test_listed_patient_stays_where_only_one_release_can_give_it(mnms: Path) -> None:
    (mnms / "MnM2" / "dataset" / "041" / "041_SA_ES_gt.nii.gz").unlink()
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A0S9V9,41", "C1K9Q8,1"])
    for prefer in ("mnms1", "mnms2"):
        scan = read_mnms(mnms, overlap=overlap, prefer=prefer)
        assert {"A0S9V9", "001"} <= set(patients(scan))
        assert scan.left_out == (UNANNOTATED,)


def test_unknown_ids_in_the_list_are_problems(mnms: Path) -> None:
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A0S9V8,41", "A0S9V9,42"])
    scan = read_mnms(mnms, overlap=overlap)
    assert "M&Ms-1 does not" in reason_of(scan, "A0S9V8")
    assert "M&Ms-2 does not" in reason_of(scan, "042")
    assert patients(scan) == EVERYBODY


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(["first,second", "A0S9V9,41"], "mnms1"), (["mnms1,mnms2", "A0S9V9,"], "line 2: it must have both ids")],
)
def test_list_without_pairs_is_refused(mnms: Path, lines: list[str], expected: str) -> None:
    overlap = write_table(mnms / "lists" / "overlap.csv", lines)
    with pytest.raises(DataError, match=expected):
        read_mnms(mnms, overlap=overlap)


@pytest.mark.parametrize("shear", [False, True])
def test_patient_of_both_is_found_by_the_voxels_of_any_frame_whatever_their_order(mnms: Path, shear: bool) -> None:
    cine = noise(0, 4)  # of A0S9V9
    path = mnms / "MnM2" / "dataset" / "041" / "041_SA_ES.nii.gz"
    write_image(path, cine[3, :, ::-1, :].transpose(0, 2, 1).astype(np.float32), shear)
    if shear:
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(str(path))
    scan = read_mnms(mnms)
    assert set(patients(scan)) == set(EVERYBODY) - {"041"}
    assert ConversionIssue("041", "is A0S9V9 of M&Ms-1", "Vall d'Hebron") in scan.left_out
    assert scan.problems == ()


def test_empty_and_unreadable_images_pair_no_patients(mnms: Path) -> None:
    blank = np.zeros((4, *SHAPE), np.int16)
    write_image(mnms / "OpenDataset" / "Validation" / "A5C2D2" / "A5C2D2_sa.nii.gz", blank)
    write_image(mnms / "MnM2" / "dataset" / "172" / "172_SA_ED.nii.gz", blank[0])
    (mnms / "OpenDataset" / "Testing" / "A1K2P5" / "A1K2P5_sa.nii.gz").write_bytes(b"\x1f\x8b cut off")
    (mnms / "MnM2" / "dataset" / "321" / "321_SA_ED.nii.gz").write_bytes(b"")
    assert patients(read_mnms(mnms)) == EVERYBODY


def test_finding_no_patient_in_both_is_a_problem_that_names_the_options(mnms: Path) -> None:
    scan = read_mnms(mnms)
    assert patients(scan) == EVERYBODY
    assert [issue.name for issue in scan.problems] == ["M&Ms-2"]
    assert "--overlap" in scan.problems[0].reason
    assert "--duplicates keep" in scan.problems[0].reason


def test_diagnoses_that_mnms1_has_too_can_be_left_out(mnms: Path) -> None:
    scan = read_mnms(mnms, duplicates="diagnosis")
    assert {patient for patient in patients(scan) if patient.isdigit()} == {"321"}
    assert ConversionIssue("172", "may be in M&Ms-1, by its diagnosis HCM", "Sagrada Familia") in scan.left_out
    with pytest.raises(ConfigError, match="prefer=mnms1"):
        read_mnms(mnms, duplicates="diagnosis", prefer="mnms2")


def test_list_of_hospitals_goes_before_vendor_and_csv(mnms: Path) -> None:
    centres = write_table(mnms / "lists" / "c.csv", ["subject;centre", "172;Hamburg", "1;1", "A0S9V9;5"], "utf-8-sig")
    found = patients(read_mnms(mnms, duplicates="keep", centres=centres))
    assert (found["172"], found["001"], found["A0S9V9"]) == ("Hamburg", "Vall d'Hebron", "Sant Pau")
    write_table(centres, ["subject,centre", "172,Dijon"])
    with pytest.raises(DataError, match=r"c\.csv, line 2: centre 'Dijon' is none of Vall d'Hebron, Sagrada"):
        read_mnms(mnms, centres=centres)


def test_unknown_centre_number_is_a_problem_and_mcgill_is_left_out(tmp_path: Path) -> None:
    rows = {**{patient: row[1:] for patient, row in MNMS1.items()}, "A0S9V9": (9, 0, 2), "A1K2P5": (6, 0, 1)}
    make_mnms1(
        tmp_path / "OpenDataset", [mnms1_line(n, patient, *row) for n, (patient, row) in enumerate(rows.items())]
    )
    make_mnms2(tmp_path / "MnM2", ["1,NOR,HITACHI,Scanner,1.5", *(f"{n},HCM,SIEMENS,,3.0" for n in (41, 172, 321))])
    scan = read_mnms(tmp_path, duplicates="keep")
    assert not {"A0S9V9", "A1K2P5", "001"} & set(patients(scan))
    assert "line 2: unknown Centre '9'" in reason_of(scan, "A0S9V9")
    assert "line 2: unknown VENDOR 'HITACHI'" in reason_of(scan, "001")
    assert ConversionIssue("A1K2P5", "McGill University Health Centre is not a centre of the paper") in scan.left_out


@pytest.mark.parametrize(("ed", "es"), [("", 2), (0, "x"), (0, -1), (2, 2)])
def test_frames_that_are_none_are_a_problem_of_that_patient(mnms: Path, ed: Any, es: Any) -> None:
    rows = {**{patient: row[1:] for patient, row in MNMS1.items()}, "A0S9V9": (1, ed, es)}
    lines = [mnms1_line(n, patient, *row) for n, (patient, row) in enumerate(rows.items())]
    write_table(mnms / "OpenDataset" / MNMS1_CSV, [MNMS1_HEADER, *lines])
    scan = read_mnms(mnms, duplicates="keep")
    assert set(patients(scan)) == set(EVERYBODY) - {"A0S9V9"}
    assert f"line 2: ED {str(ed)!r}, ES {str(es)!r} must be two frames" in reason_of(scan, "A0S9V9")
    assert scan.problems[0].centre == "Vall d'Hebron"


def test_frames_may_be_written_as_real_numbers(mnms: Path) -> None:
    lines = [mnms1_line(n, p, f"{row[1]}.0", f"{row[2]}.0", f"{row[3]}.0") for n, (p, row) in enumerate(MNMS1.items())]
    write_table(mnms / "OpenDataset" / MNMS1_CSV, [MNMS1_HEADER, *lines])
    scan = read_mnms(mnms, duplicates="keep")
    assert patients(scan) == EVERYBODY
    assert {case.name: case.label.frame for case in scan.cases}["B2D9O2_ED"] == 3


def test_each_missing_file_is_named_once(mnms: Path) -> None:
    first = mnms / "OpenDataset" / "Testing" / "Z9Y8X7" / "Z9Y8X7_sa_gt.nii.gz"
    second = mnms / "MnM2" / "dataset" / "321" / "321_SA_ED_gt.nii.gz"
    for path in (first, second):
        path.unlink()
    scan = read_mnms(mnms, duplicates="keep")
    assert set(patients(scan)) == set(EVERYBODY) - {"Z9Y8X7", "321"}
    assert scan.problems == (
        ConversionIssue("Z9Y8X7", f"missing: {first}; unpack the download again", "Sant Pau"),
        ConversionIssue("321", f"missing: {second}; unpack the download again", "Vall d'Hebron"),
    )


def test_folder_without_line_and_line_without_folder_are_problems(tmp_path: Path) -> None:
    lines = [mnms1_line(n, p, *row[1:]) for n, (p, row) in enumerate(MNMS1.items()) if p != "A5C2D2"]
    make_mnms1(tmp_path / "OpenDataset", [*lines, mnms1_line(6, "X0Y0Z0", 3, 0, 5), mnms1_line(7, "U0U0U0", 4, 0, 0)])
    make_mnms2(tmp_path / "MnM2", [f"{n},HCM,SIEMENS,,3.0" for n in (1, 41, 172, 5)])
    scan = read_mnms(tmp_path, duplicates="keep")
    assert set(patients(scan)) == set(EVERYBODY) - {"A5C2D2", "321"}
    assert "has no line for it" in reason_of(scan, "A5C2D2")
    assert "has no line for it" in reason_of(scan, "321")
    assert "none of Training/Labeled, Validation, Testing has" in reason_of(scan, "X0Y0Z0")
    assert "the folder dataset does not" in reason_of(scan, "005")
    assert "U0U0U0" in {issue.name for issue in scan.left_out}  # ED and ES are both 0: not annotated


def test_line_that_comes_twice_is_a_problem_and_counts_once(mnms: Path) -> None:
    with (mnms / "OpenDataset" / MNMS1_CSV).open("a") as file:
        file.write(mnms1_line(6, "A0S9V9", 2, 1, 0) + "\n")
    scan = read_mnms(mnms, duplicates="keep")
    assert patients(scan) == EVERYBODY
    assert "line 8: it is in line 2 already" in reason_of(scan, "A0S9V9")


@pytest.mark.parametrize(("missing", "there"), [("OpenDataset", "MnM2"), ("MnM2", "OpenDataset")])
def test_missing_release_is_a_problem_that_says_where_to_get_it(mnms: Path, missing: str, there: str) -> None:
    shutil.rmtree(mnms / missing)
    scan = read_mnms(mnms)
    assert {patient.isdigit() for patient in patients(scan)} == {there == "MnM2"}
    [problem] = scan.problems
    assert "holds no CSV of M&Ms-" in problem.reason
    assert "https://www.ub.edu/mnms-2/" in problem.reason


@pytest.mark.parametrize(
    "folder", ["OpenDataset/Training/Labeled", "OpenDataset/Validation", "OpenDataset/Testing", "MnM2/dataset"]
)
def test_missing_part_of_a_release_is_named(mnms: Path, folder: str) -> None:
    (mnms / folder).rename(mnms / "elsewhere")
    with pytest.raises(DataError, match=rf"there is no folder .*{folder}; it should hold M&Ms-1"):
        read_mnms(mnms)


def test_another_download_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        read_mnms(tmp_path / "nowhere")
    write_table(tmp_path / "some.csv", ["patient,age", "1,50"])
    with pytest.raises(DataError, match="holds no CSV of M&Ms-1 or M&Ms-2; it should hold"):
        read_mnms(tmp_path)


def test_merged_collection_is_read_with_either_spelling_of_its_files(tmp_path: Path) -> None:
    write_table(tmp_path / "mnms3.csv", ["ID,Centre", "A0S9V9,1", "7,5", "8,3", "9,7"])
    for patient, stem in (("A0S9V9", "A0S9V9_"), ("007", "007_SA_"), ("008", "008_SA_")):
        for name in ("ED", "ED_gt", "ES", "ES_gt"):
            write_image(tmp_path / patient / f"{stem}{name}.nii.gz", noise(1))
    (tmp_path / "008" / "008_SA_ES.nii.gz").unlink()
    scan = read_mnms(tmp_path)
    assert patients(scan) == {"A0S9V9": "Vall d'Hebron", "007": "Sant Pau"}
    cases = {case.name: case for case in scan.cases}
    assert cases["A0S9V9_ED"].channels == (SourceImage(tmp_path / "A0S9V9" / "A0S9V9_ED.nii.gz"),)
    assert cases["007_ES"].label == SourceImage(tmp_path / "007" / "007_SA_ES_gt.nii.gz")
    assert cases["007_ES"].label_values == LV_FIRST
    assert "missing: " + str(tmp_path / "008" / "008_SA_ES.nii.gz") in reason_of(scan, "008")
    assert "unknown Centre '7'" in reason_of(scan, "009")
