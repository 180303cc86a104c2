"""What a conversion prints stays readable."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from fednnunet.conversion.console import count_notes, show_plan, show_result
from fednnunet.conversion.manifest import CaseRecord, Manifest
from fednnunet.conversion.plan import plan_conversion
from fednnunet.conversion.scan_result import ScanResult, SourceCase, SourceImage
from fednnunet.conversion.targets import TargetCentre, numbered_targets
from fednnunet.conversion.writer import ConversionResult


def shown(scan: ScanResult, width: int) -> list[str]:
    """Lines of the plan of ``scan`` in a terminal of ``width`` columns."""
    plan = plan_conversion(scan, numbered_targets(scan, "Custom", 601, []), scan.labels)
    console = Console(file=io.StringIO(), width=width)
    show_plan(plan, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def scan_of(tmp_path: Path, *centres: str, channel: str = "T1w") -> ScanResult:
    image = tmp_path / "image.nii.gz"
    image.touch()
    cases = tuple(
        SourceCase(f"case{number}", centre, (SourceImage(image),), SourceImage(image), {1: "tumour"})
        for number, centre in enumerate(centres)
    )
    return ScanResult(cases, (channel,), labels={"background": 0, "tumour": 1}, notes=("the source is old",))


def test_names_of_sixty_characters_are_shown_in_full_in_a_narrow_terminal(tmp_path: Path) -> None:
    long = "Spinal_Cord_Injury_Center_University_Balgrist_Clinic_Zuerich"
    lines = shown(scan_of(tmp_path, long, "Oslo"), 80)
    assert max(map(len, lines)) <= 80
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert "".join(cells[0] for cells in table) == (
        f"OsloDataset601_Custom_Oslo{long}Dataset602_Custom_{long.replace('_', '')}"
    )
    assert [cells[1:] for cells in table if cells[1]] == [["1", "1", "0", "0"]] * 2
    (header,) = [line for line in lines if line.startswith("┃")]
    assert [cell.strip() for cell in header.split("┃")[2:-1]] == ["patients", "cases", "left out", "problems"]


def test_notes_of_the_source_and_names_that_hide_ct_are_told(tmp_path: Path) -> None:
    def notes(channel: str) -> list[str]:
        lines = shown(scan_of(tmp_path, "Oslo", channel=channel), 200)
        return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]

    for name in ("ncct", "CTA", "ct_lung", "CECT"):
        assert notes(name) == [
            "the source is old",
            f"nnU-Net normalises channel {name} like MR, as only the name CT is CT to it; if it is CT, name it CT "
            "(--channel-names CT, or a column image_CT)",
        ]
    for name in ("CT", "ct", "T1w", "T1ct", "actual", "dwi"):
        assert notes(name) == ["the source is old"]


def test_notes_of_cases_are_counted() -> None:
    cases = {
        "a": ["the label map is empty", "values were rounded (0.99 in a.nii)"],
        "b": ["values were rounded (1.01 in b.nii)", "values were rounded (1.02 in b2.nii)"],
        "c": ["values were rounded (2.01 in c.nii)", "NaN became 0 (1,000 voxels in c.nii)"],
        "d": ["NaN became 0 (20 voxels in d1.nii)", "NaN became 0 (3 voxels in d2.nii)"],
    }
    assert count_notes(cases) == [
        "1 case, a: the label map is empty",
        "3 cases, the first a: values were rounded (0.99 in a.nii)",
        "2 cases, the first c: NaN became 0 (1,000 voxels in c.nii; 1,023 in all)",
    ]


def test_a_centre_of_one_patient_is_told(tmp_path: Path) -> None:
    def result(*patients: str) -> str:
        cases = {
            f"case{number}": CaseRecord(patient=patient, sources={}, files={"image": str(number)})
            for number, patient in enumerate(patients)
        }
        manifest = Manifest(made_by="test", settings={}, centre="Oslo", cases=cases)
        console = Console(file=io.StringIO(), width=200)
        done = ConversionResult(TargetCentre("Oslo", "Dataset601_Oslo"), tmp_path / "Dataset601_Oslo", manifest, 0)
        show_result([done], [], tmp_path, None, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    assert "note: Oslo: all 3 cases are of one patient, so that folds hold out a patient" in result("p", "p", "p")
    assert "one patient" not in result("p", "p", "q") + result("p")
