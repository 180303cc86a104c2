"""Reader of ACDC, on a miniature of the published download."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednnunet.conversion.readers.acdc import read_acdc
from fednnunet.conversion.scan_result import SourceImage
from fednnunet.errors import DataError
from tests.support.cine_downloads import ACDC, RV_FIRST, make_acdc, patients, reason_of


@pytest.mark.parametrize("inner", ["", "database"])
def test_acdc_gives_two_cases_a_patient_of_both_sets(tmp_path: Path, inner: str) -> None:
    root = make_acdc(tmp_path / inner)
    scan = read_acdc(tmp_path)
    assert patients(scan) == dict.fromkeys(ACDC, "ACDC")
    assert scan.problems == scan.left_out == ()
    cases = {case.name: case for case in scan.cases}
    assert len(cases) == 6
    folder = root / "training" / "patient090"
    assert cases["patient090_ED"].channels == (SourceImage(folder / "patient090_frame11.nii.gz"),)
    assert cases["patient090_ES"].label == SourceImage(folder / "patient090_frame03_gt.nii.gz")
    assert all(case.label_values == RV_FIRST for case in scan.cases)


@pytest.mark.parametrize(
    "text", ["", "ED 1\nES 12\n", "ED: 1\n", "ED: one\nES: 12\n", "ED: 1\nES: 1\n", "ED:\nES: 12\n"]
)
def test_malformed_info_is_a_problem_of_that_patient(tmp_path: Path, text: str) -> None:
    root = make_acdc(tmp_path)
    info = root / "training" / "patient001" / "Info.cfg"
    info.write_text(text)
    scan = read_acdc(root)
    assert set(patients(scan)) == {"patient090", "patient101"}
    assert scan.problems[0].centre == "ACDC"
    assert f"{info} must have lines such as `ED: 1`" in reason_of(scan, "patient001")


def test_missing_files_of_acdc_are_named(tmp_path: Path) -> None:
    root = make_acdc(tmp_path)
    (root / "training" / "patient001" / "Info.cfg").unlink()
    (root / "training" / "patient090" / "Info.cfg").write_bytes(b"\xff\xfe\x00")
    label = root / "testing" / "patient101" / "patient101_frame14_gt.nii.gz"
    label.unlink()
    scan = read_acdc(root)
    assert scan.cases == ()
    assert "Info.cfg is missing" in reason_of(scan, "patient001")
    assert "Info.cfg cannot be read" in reason_of(scan, "patient090")
    assert reason_of(scan, "patient101") == f"missing: {label}; unpack the download again"


def test_another_download_than_acdc_is_refused(tmp_path: Path) -> None:
    make_acdc(tmp_path)
    (tmp_path / "testing").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"there is no folder .*testing; it should hold training"):
        read_acdc(tmp_path)
    (tmp_path / "empty" / "training").mkdir(parents=True)
    (tmp_path / "empty" / "testing").mkdir()
    with pytest.raises(DataError, match="hold no folder of a patient"):
        read_acdc(tmp_path / "empty")
