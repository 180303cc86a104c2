"""Reader of EuCanImage, on miniatures in MAMA-MIA's layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednnunet.conversion.readers.eucanimage import read_eucanimage
from fednnunet.conversion.readers.mamamia import read_mamamia
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceImage
from fednnunet.errors import DataError
from tests.support.dce_downloads import expected_case, phase, write_patient


def centres_of(scan: ScanResult) -> dict[str, str]:
    return {case.name: case.centre for case in scan.cases}


def test_eucanimages_centre_is_what_the_id_begins_with(tmp_path: Path) -> None:
    for patient in ("GUMED_0001", "KAUNO-17", "hcb_003"):
        write_patient(tmp_path, patient, phases=2)
    write_patient(tmp_path, "EUC_001", phases=2)
    scan = read_eucanimage(tmp_path)
    assert centres_of(scan) == {"GUMED_0001": "GUMED", "KAUNO-17": "KAUNO", "HCB_003": "HCB"}
    assert scan.cases[0] == expected_case(tmp_path, "GUMED_0001", SourceImage(phase(tmp_path, "GUMED_0001", 1)))
    (problem,) = scan.problems
    assert problem.name == "EUC_001"
    assert "GUMED, KAUNO, HCB; give a CSV with columns patient and centre by --centres" in problem.reason


def test_eucanimages_channels_are_those_of_mamamia(tmp_path: Path, download: Path) -> None:
    write_patient(tmp_path / "e", "HCB_1", phases=4)
    for phases in ("first", "all", "subtraction"):
        trained = read_mamamia(download, phases=phases).channel_names
        assert read_eucanimage(tmp_path / "e", phases=phases).channel_names == trained


def test_label_maps_may_be_in_segmentations_itself(tmp_path: Path) -> None:
    write_patient(tmp_path, "HCB_1", phases=2, masks="segmentations")
    assert read_eucanimage(tmp_path).cases[0].label == SourceImage(tmp_path / "segmentations/HCB_1.nii.gz")


def test_eucanimages_centres_may_have_folders(tmp_path: Path) -> None:
    write_patient(tmp_path / "GUMED", "ABC_DEF_S0001", phases=2)
    write_patient(tmp_path / "hcb", "ABC_DEF_S0002", phases=2, masks="segmentations")
    write_patient(tmp_path / "Oslo", "ABC_DEF_S0003", phases=2)
    (tmp_path / "notes").mkdir()
    scan = read_eucanimage(tmp_path)
    assert centres_of(scan) == {"ABC_DEF_S0001": "GUMED", "ABC_DEF_S0002": "HCB"}
    assert scan.problems == (
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
    scan = read_eucanimage(tmp_path / "tree", centres=table)
    assert centres_of(scan) == {"S0001": "GUMED", "S0002": "HCB"}
    known = "which is none of GUMED, KAUNO, HCB"
    assert scan.problems == (
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
        ("patient,centre\nS1,Łódź".encode("utf-16"), "is not text in UTF-8"),
        (b"", "is empty; its first line must name the columns patient, centre"),
        (b"patient,hospital\nS1,HCB", "has no column centre"),
    ],
)
def test_an_unusable_table_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    write_patient(tmp_path, "S1", phases=2)
    if content is not None:
        (tmp_path / "centres.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_eucanimage(tmp_path, centres=tmp_path / "centres.csv")


def test_another_layout_than_eucanimages_is_refused_with_the_expected_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; the EuCanImage reader takes MAMA-MIA's layout"):
        read_eucanimage(tmp_path / "nowhere")
    (tmp_path / "Oslo/images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"neither a folder images nor .*Oslo: its name is none of"):
        read_eucanimage(tmp_path)


def test_eucanimage_studies_without_enough_phases_are_left_out(tmp_path: Path) -> None:
    write_patient(tmp_path, "HCB_1", phases=2)
    write_patient(tmp_path, "HCB_2", phases=3)
    write_patient(tmp_path, "HCB_3", phases=1)
    scan = read_eucanimage(tmp_path, phases="all")
    assert centres_of(scan) == {"HCB_2": "HCB"}
    assert scan.left_out == (ConversionIssue("HCB_1", "has 2 phases; --number-of-phases asks for 3", "HCB"),)
    assert [issue.name for issue in scan.problems] == ["HCB_3"]
