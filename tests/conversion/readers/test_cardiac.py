"""Readers of M&Ms and ACDC, on miniature trees laid out as the published ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from omegaconf import OmegaConf

from fednnunet.conversion.readers.cardiac import read_acdc, read_mnms
from fednnunet.conversion.study import ConversionIssue, ScanResult, Source
from fednnunet.errors import ConfigError, DataError

CONF = Path(__file__).parents[3] / "conf" / "dataset" / "mnms.yaml"
SHAPE = (3, 8, 8)
"""Voxels (Z, Y, X)."""
MNMS1_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
MNMS1_CSV = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
MNMS1_OLD_CSV = "201014_M&Ms_Dataset_Information_-_opendataset.csv"
MNMS1 = {  # id: part, centre, ED, ES
    "A0S9V9": ("Training/Labeled", 1, 0, 2),
    "B2D9O2": ("Training/Labeled", 2, 3, 1),
    "A5C2D2": ("Validation", 3, 0, 1),
    "A1K2P5": ("Testing", 4, 0, 1),
    "Z9Y8X7": ("Testing", 5, 1, 0),
    "C1K9Q8": ("Training/Unlabeled", 4, 0, 0),
}
MNMS2 = {  # subject: disease, vendor
    1: ("NOR", "GE MEDICAL SYSTEMS"),
    41: ("LV", "SIEMENS"),
    172: ("HCM", "Philips Medical Systems"),
    321: ("TRI", "SIEMENS"),
}
LV_FIRST = {1: "LV", 2: "MYO", 3: "RV"}
RV_FIRST = {1: "RV", 2: "MYO", 3: "LV"}


def write_image(path: Path, values: np.ndarray, shear: bool = False) -> Path:
    """(Z, Y, X) or (T, Z, Y, X); ``shear`` gives directions that are not orthonormal, which SimpleITK refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shear:
        import nibabel as nib

        affine = np.diag([1.3, 1.3, 10, 1.0])
        affine[0, 1] = 0.4
        image = nib.Nifti1Image(values.transpose(), affine)
        image.set_qform(None, code=0)
        nib.save(image, path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(path))
    return path


def noise(seed: int, frames: int | None = None) -> np.ndarray:
    size = SHAPE if frames is None else (frames, *SHAPE)
    return np.random.default_rng(seed).integers(0, 900, size).astype(np.int16)


def write_table(path: Path, lines: Iterable[str], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding=encoding)
    return path


def mnms1_line(number: int, patient: str, centre: Any, ed: Any, es: Any) -> str:
    return f"{number},{patient},Siemens,A,{centre},{ed},{es},45,HCM,M,170.0,"


def make_mnms1(root: Path, lines: Sequence[str] | None = None) -> Path:
    """The release OpenDataset; the seed of a patient's cine is its place in :data:`MNMS1`."""
    for number, (patient, (part, _, ed, es)) in enumerate(MNMS1.items()):
        stem = root / part / patient / f"{patient}_sa"
        label = np.zeros((4, *SHAPE), np.uint8)
        label[[ed, es], 1, 2:5, 2:5] = 3
        write_image(Path(f"{stem}.nii.gz"), noise(number, 4))
        write_image(Path(f"{stem}_gt.nii.gz"), label)
    if lines is None:
        lines = [mnms1_line(n, patient, *row[1:]) for n, (patient, row) in enumerate(MNMS1.items())]
    write_table(root / MNMS1_CSV, [MNMS1_HEADER, *lines])
    return root


def make_mnms2(root: Path, lines: Sequence[str] | None = None) -> Path:
    """The release MnM2, with its long axis and cine, and the empty lines at its CSV's end."""
    for subject in MNMS2:
        code = f"{subject:03d}"
        for number, what in enumerate(("SA_ED", "SA_ES", "LA_ED", "LA_ES"), start=1):
            write_image(root / "dataset" / code / f"{code}_{what}.nii.gz", noise(1000 * number + subject))
            write_image(root / "dataset" / code / f"{code}_{what}_gt.nii.gz", np.ones(SHAPE, np.uint8))
        for what in ("SA_CINE", "LA_CINE"):
            write_image(root / "dataset" / code / f"{code}_{what}.nii.gz", noise(9000 + subject, 2))
    if lines is None:
        lines = [f"{subject},{disease},{vendor},Scanner,1.5" for subject, (disease, vendor) in MNMS2.items()]
    write_table(root / "dataset_information.csv", ["SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD", *lines, ",,,,", ",,,,"])
    return root


@pytest.fixture
def mnms(tmp_path: Path) -> Path:
    make_mnms1(tmp_path / "OpenDataset")
    make_mnms2(tmp_path / "MnM2")
    return tmp_path


def patients(survey: ScanResult) -> dict[str, str]:
    """Patient to centre."""
    return {study.patient: study.centre for study in survey.studies}


def reason_of(survey: ScanResult, study: str) -> str:
    [remark] = [remark for remark in survey.problems if remark.study == study]
    return remark.reason


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
    survey = read_mnms(mnms, duplicates="keep")
    assert patients(survey) == EVERYBODY
    assert [study.case for study in survey.studies] == [
        f"{p}_{phase}" for p in sorted(EVERYBODY) for phase in ("ED", "ES")
    ]
    assert all(study.label_values == LV_FIRST for study in survey.studies)
    assert (survey.channel_names, survey.file_ending) == (("cineMRI",), ".nii.gz")
    assert survey.problems == ()
    assert survey.left_out == (UNANNOTATED,)


def test_frames_of_mnms1_are_those_of_the_csv_and_mnms2_has_files_of_its_short_axis(mnms: Path) -> None:
    cases = {study.case: study for study in read_mnms(mnms, duplicates="keep").studies}
    folder = mnms / "OpenDataset" / "Training" / "Labeled" / "B2D9O2"
    assert cases["B2D9O2_ED"].channels == (Source(folder / "B2D9O2_sa.nii.gz", 3),)
    assert cases["B2D9O2_ED"].label == Source(folder / "B2D9O2_sa_gt.nii.gz", 3)
    assert cases["B2D9O2_ES"].label == Source(folder / "B2D9O2_sa_gt.nii.gz", 1)
    folder = mnms / "MnM2" / "dataset" / "041"
    assert cases["041_ES"].channels == (Source(folder / "041_SA_ES.nii.gz"),)
    assert cases["041_ES"].label == Source(folder / "041_SA_ES_gt.nii.gz")


def test_names_of_hospitals_are_those_of_the_configuration(mnms: Path, tmp_path: Path) -> None:
    centres = OmegaConf.to_container(OmegaConf.load(CONF).centres)
    assert isinstance(centres, list)
    internal = {centre["name"] for centre in centres if not centre.get("external")}
    assert set(patients(read_mnms(mnms, duplicates="keep")).values()) == internal
    external = {centre["name"] for centre in centres if centre.get("external")}
    assert set(patients(read_acdc(make_acdc(tmp_path / "acdc"))).values()) == external


def test_csv_of_2020_without_index_serves_and_the_newer_one_comes_first(mnms: Path) -> None:
    root = mnms / "OpenDataset"
    lines = [f"{patient},Siemens,A,1,{row[2]},{row[3]}" for patient, row in MNMS1.items()]
    write_table(root / MNMS1_OLD_CSV, ["External code,VendorName,Vendor,Centre,ED,ES", *lines])
    assert patients(read_mnms(mnms, duplicates="keep")) == EVERYBODY
    (root / MNMS1_CSV).unlink()
    found = patients(read_mnms(mnms, duplicates="keep"))
    assert {found[patient] for patient in MNMS1 if patient in found} == {"Vall d'Hebron"}


def test_releases_may_lie_in_two_places(tmp_path: Path) -> None:
    first, second = make_mnms1(tmp_path / "a" / "OpenDataset"), make_mnms2(tmp_path / "b" / "MnM2")
    assert patients(read_mnms(first, mnms2=second, duplicates="keep")) == EVERYBODY


# ---------------------------------------------------------------- patients of both


def test_listed_patient_of_both_is_taken_once(mnms: Path) -> None:
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A0S9V9,41"])
    survey = read_mnms(mnms, overlap=overlap)
    assert patients(survey) == {patient: centre for patient, centre in EVERYBODY.items() if patient != "041"}
    assert ConversionIssue("041", "is A0S9V9 of M&Ms-1", "Vall d'Hebron") in survey.left_out
    assert survey.problems == ()


def test_preferred_release_keeps_the_patient_at_the_hospital_that_mnms1_names(mnms: Path) -> None:
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A5C2D2,172"])
    survey = read_mnms(mnms, overlap=overlap, prefer="mnms2")
    assert "A5C2D2" not in patients(survey)
    assert patients(survey)["172"] == "Hamburg"
    assert ConversionIssue("A5C2D2", "is 172 of M&Ms-2", "Hamburg") in survey.left_out


def test_listed_patient_stays_where_only_one_release_can_give_it(mnms: Path) -> None:
    (mnms / "MnM2" / "dataset" / "041" / "041_SA_ES_gt.nii.gz").unlink()
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A0S9V9,41", "C1K9Q8,1"])
    for prefer in ("mnms1", "mnms2"):
        survey = read_mnms(mnms, overlap=overlap, prefer=prefer)
        assert {"A0S9V9", "001"} <= set(patients(survey))
        assert survey.left_out == (UNANNOTATED,)


def test_unknown_ids_in_the_list_are_problems(mnms: Path) -> None:
    overlap = write_table(mnms / "lists" / "overlap.csv", ["mnms1,mnms2", "A0S9V8,41", "A0S9V9,42"])
    survey = read_mnms(mnms, overlap=overlap)
    assert "M&Ms-1 has not" in reason_of(survey, "A0S9V8")
    assert "M&Ms-2 has not" in reason_of(survey, "042")
    assert patients(survey) == EVERYBODY


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(["first,second", "A0S9V9,41"], "mnms1"), (["mnms1,mnms2", "A0S9V9,"], "line 2: it must have both ids")],
)
def test_list_that_pairs_nobody_is_refused(mnms: Path, lines: list[str], expected: str) -> None:
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
    survey = read_mnms(mnms)
    assert set(patients(survey)) == set(EVERYBODY) - {"041"}
    assert ConversionIssue("041", "is A0S9V9 of M&Ms-1", "Vall d'Hebron") in survey.left_out
    assert survey.problems == ()


def test_empty_and_unreadable_images_make_nobody_a_patient_of_both(mnms: Path) -> None:
    blank = np.zeros((4, *SHAPE), np.int16)
    write_image(mnms / "OpenDataset" / "Validation" / "A5C2D2" / "A5C2D2_sa.nii.gz", blank)
    write_image(mnms / "MnM2" / "dataset" / "172" / "172_SA_ED.nii.gz", blank[0])
    (mnms / "OpenDataset" / "Testing" / "A1K2P5" / "A1K2P5_sa.nii.gz").write_bytes(b"\x1f\x8b cut off")
    (mnms / "MnM2" / "dataset" / "321" / "321_SA_ED.nii.gz").write_bytes(b"")
    assert patients(read_mnms(mnms)) == EVERYBODY


def test_finding_nobody_in_both_is_a_problem_that_names_the_ways_out(mnms: Path) -> None:
    survey = read_mnms(mnms)
    assert patients(survey) == EVERYBODY
    assert [remark.study for remark in survey.problems] == ["M&Ms-2"]
    assert "--overlap" in survey.problems[0].reason
    assert "--duplicates keep" in survey.problems[0].reason


def test_diagnoses_that_mnms1_has_too_can_be_left_out(mnms: Path) -> None:
    survey = read_mnms(mnms, duplicates="diagnosis")
    assert {patient for patient in patients(survey) if patient.isdigit()} == {"321"}
    assert ConversionIssue("172", "may be in M&Ms-1, by its diagnosis HCM", "Sagrada Familia") in survey.left_out
    with pytest.raises(ConfigError, match="prefer=mnms1"):
        read_mnms(mnms, duplicates="diagnosis", prefer="mnms2")


# ---------------------------------------------------------------- hospitals


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
    survey = read_mnms(tmp_path, duplicates="keep")
    assert not {"A0S9V9", "A1K2P5", "001"} & set(patients(survey))
    assert "line 2: unknown Centre '9'" in reason_of(survey, "A0S9V9")
    assert "line 2: unknown VENDOR 'HITACHI'" in reason_of(survey, "001")
    assert ConversionIssue("A1K2P5", "McGill University Health Centre is no centre of the paper") in survey.left_out


# ---------------------------------------------------------------- what is missing or wrong


@pytest.mark.parametrize(("ed", "es"), [("", 2), (0, "x"), (0, -1), (2, 2)])
def test_frames_that_are_none_are_a_problem_of_that_patient(mnms: Path, ed: Any, es: Any) -> None:
    rows = {**{patient: row[1:] for patient, row in MNMS1.items()}, "A0S9V9": (1, ed, es)}
    lines = [mnms1_line(n, patient, *row) for n, (patient, row) in enumerate(rows.items())]
    write_table(mnms / "OpenDataset" / MNMS1_CSV, [MNMS1_HEADER, *lines])
    survey = read_mnms(mnms, duplicates="keep")
    assert set(patients(survey)) == set(EVERYBODY) - {"A0S9V9"}
    assert f"line 2: ED {str(ed)!r}, ES {str(es)!r} must be two frames" in reason_of(survey, "A0S9V9")
    assert survey.problems[0].centre == "Vall d'Hebron"


def test_frames_may_be_written_as_real_numbers(mnms: Path) -> None:
    lines = [mnms1_line(n, p, f"{row[1]}.0", f"{row[2]}.0", f"{row[3]}.0") for n, (p, row) in enumerate(MNMS1.items())]
    write_table(mnms / "OpenDataset" / MNMS1_CSV, [MNMS1_HEADER, *lines])
    survey = read_mnms(mnms, duplicates="keep")
    assert patients(survey) == EVERYBODY
    assert {s.case: s.label.frame for s in survey.studies}["B2D9O2_ED"] == 3


def test_each_missing_file_is_named_once(mnms: Path) -> None:
    first = mnms / "OpenDataset" / "Testing" / "Z9Y8X7" / "Z9Y8X7_sa_gt.nii.gz"
    second = mnms / "MnM2" / "dataset" / "321" / "321_SA_ED_gt.nii.gz"
    for path in (first, second):
        path.unlink()
    survey = read_mnms(mnms, duplicates="keep")
    assert set(patients(survey)) == set(EVERYBODY) - {"Z9Y8X7", "321"}
    assert survey.problems == (
        ConversionIssue("Z9Y8X7", f"missing: {first}; unpack the download again", "Sant Pau"),
        ConversionIssue("321", f"missing: {second}; unpack the download again", "Vall d'Hebron"),
    )


def test_folder_without_line_and_line_without_folder_are_problems(tmp_path: Path) -> None:
    lines = [mnms1_line(n, p, *row[1:]) for n, (p, row) in enumerate(MNMS1.items()) if p != "A5C2D2"]
    make_mnms1(tmp_path / "OpenDataset", [*lines, mnms1_line(6, "X0Y0Z0", 3, 0, 5), mnms1_line(7, "U0U0U0", 4, 0, 0)])
    make_mnms2(tmp_path / "MnM2", [f"{n},HCM,SIEMENS,,3.0" for n in (1, 41, 172, 5)])
    survey = read_mnms(tmp_path, duplicates="keep")
    assert set(patients(survey)) == set(EVERYBODY) - {"A5C2D2", "321"}
    assert "has no line for it" in reason_of(survey, "A5C2D2")
    assert "has no line for it" in reason_of(survey, "321")
    assert "none of Training/Labeled, Validation, Testing has" in reason_of(survey, "X0Y0Z0")
    assert "the folder dataset does not" in reason_of(survey, "005")
    assert "U0U0U0" in {remark.study for remark in survey.left_out}  # ED and ES are both 0: not annotated


def test_line_that_comes_twice_is_a_problem_and_counts_once(mnms: Path) -> None:
    with (mnms / "OpenDataset" / MNMS1_CSV).open("a") as file:
        file.write(mnms1_line(6, "A0S9V9", 2, 1, 0) + "\n")
    survey = read_mnms(mnms, duplicates="keep")
    assert patients(survey) == EVERYBODY
    assert "line 8: it stands in line 2 already" in reason_of(survey, "A0S9V9")


@pytest.mark.parametrize(("missing", "there"), [("OpenDataset", "MnM2"), ("MnM2", "OpenDataset")])
def test_missing_release_is_a_problem_that_says_where_to_get_it(mnms: Path, missing: str, there: str) -> None:
    shutil.rmtree(mnms / missing)
    survey = read_mnms(mnms)
    assert {patient.isdigit() for patient in patients(survey)} == {there == "MnM2"}
    [problem] = survey.problems
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


# ---------------------------------------------------------------- the paper's merged collection


def test_merged_collection_is_read_with_either_spelling_of_its_files(tmp_path: Path) -> None:
    write_table(tmp_path / "mnms3.csv", ["ID,Centre", "A0S9V9,1", "7,5", "8,3", "9,7"])
    for patient, stem in (("A0S9V9", "A0S9V9_"), ("007", "007_SA_"), ("008", "008_SA_")):
        for name in ("ED", "ED_gt", "ES", "ES_gt"):
            write_image(tmp_path / patient / f"{stem}{name}.nii.gz", noise(1))
    (tmp_path / "008" / "008_SA_ES.nii.gz").unlink()
    survey = read_mnms(tmp_path)
    assert patients(survey) == {"A0S9V9": "Vall d'Hebron", "007": "Sant Pau"}
    cases = {study.case: study for study in survey.studies}
    assert cases["A0S9V9_ED"].channels == (Source(tmp_path / "A0S9V9" / "A0S9V9_ED.nii.gz"),)
    assert cases["007_ES"].label == Source(tmp_path / "007" / "007_SA_ES_gt.nii.gz")
    assert cases["007_ES"].label_values == LV_FIRST
    assert "missing: " + str(tmp_path / "008" / "008_SA_ES.nii.gz") in reason_of(survey, "008")
    assert "unknown Centre '7'" in reason_of(survey, "009")


# ---------------------------------------------------------------- ACDC


ACDC = {  # patient: part, ED, ES
    "patient001": ("training", 1, 12),
    "patient090": ("training", 11, 3),
    "patient101": ("testing", 1, 14),
}


def make_acdc(root: Path) -> Path:
    for number, (patient, (part, ed, es)) in enumerate(ACDC.items()):
        folder = root / part / patient
        for frame in (ed, es):
            write_image(folder / f"{patient}_frame{frame:02d}.nii.gz", noise(100 * number + frame))
            write_image(folder / f"{patient}_frame{frame:02d}_gt.nii.gz", np.ones(SHAPE, np.uint8))
        write_image(folder / f"{patient}_4d.nii.gz", noise(0, 2))
        write_table(
            folder / "Info.cfg",
            [f"ED: {ed}", f"ES: {es}", "Group: DCM", "Height: 184.0", "NbFrame: 30", "Weight: 95.0"],
        )
        (folder / "MANDATORY_CITATION.md").touch()
    return root


@pytest.mark.parametrize("inner", ["", "database"])
def test_acdc_gives_two_cases_a_patient_of_both_sets(tmp_path: Path, inner: str) -> None:
    root = make_acdc(tmp_path / inner)
    survey = read_acdc(tmp_path)
    assert patients(survey) == dict.fromkeys(ACDC, "ACDC")
    assert survey.problems == survey.left_out == ()
    cases = {study.case: study for study in survey.studies}
    assert len(cases) == 6
    folder = root / "training" / "patient090"
    assert cases["patient090_ED"].channels == (Source(folder / "patient090_frame11.nii.gz"),)
    assert cases["patient090_ES"].label == Source(folder / "patient090_frame03_gt.nii.gz")
    assert all(study.label_values == RV_FIRST for study in survey.studies)


@pytest.mark.parametrize(
    "text", ["", "ED 1\nES 12\n", "ED: 1\n", "ED: one\nES: 12\n", "ED: 1\nES: 1\n", "ED:\nES: 12\n"]
)
def test_malformed_info_is_a_problem_of_that_patient(tmp_path: Path, text: str) -> None:
    root = make_acdc(tmp_path)
    info = root / "training" / "patient001" / "Info.cfg"
    info.write_text(text)
    survey = read_acdc(root)
    assert set(patients(survey)) == {"patient090", "patient101"}
    assert survey.problems[0].centre == "ACDC"
    assert f"{info} must have lines such as `ED: 1`" in reason_of(survey, "patient001")


def test_missing_files_of_acdc_are_named(tmp_path: Path) -> None:
    root = make_acdc(tmp_path)
    (root / "training" / "patient001" / "Info.cfg").unlink()
    (root / "training" / "patient090" / "Info.cfg").write_bytes(b"\xff\xfe\x00")
    label = root / "testing" / "patient101" / "patient101_frame14_gt.nii.gz"
    label.unlink()
    survey = read_acdc(root)
    assert survey.studies == ()
    assert "Info.cfg is missing" in reason_of(survey, "patient001")
    assert "Info.cfg cannot be read" in reason_of(survey, "patient090")
    assert reason_of(survey, "patient101") == f"missing: {label}; unpack the download again"


def test_another_download_than_acdc_is_refused(tmp_path: Path) -> None:
    make_acdc(tmp_path)
    (tmp_path / "testing").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"there is no folder .*testing; it should hold training"):
        read_acdc(tmp_path)
    (tmp_path / "empty" / "training").mkdir(parents=True)
    (tmp_path / "empty" / "testing").mkdir()
    with pytest.raises(DataError, match="hold no folder of a patient"):
        read_acdc(tmp_path / "empty")
