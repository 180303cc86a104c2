"""Folders of DICOM become cases: series as channels, SEG and RTSTRUCT as label maps."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.conversion.images import read_image
from fednnunet.conversion.label_maps import read_label
from fednnunet.conversion.plan import plan_conversion
from fednnunet.conversion.readers.dicom.patterns import parse_patterns
from fednnunet.conversion.readers.dicom.reader import read_dicom
from fednnunet.conversion.scan_result import SourceCase
from fednnunet.conversion.targets import TargetCentre, numbered_targets
from fednnunet.dicom.segmentation import write_segmentation
from fednnunet.errors import ConfigError, DataError
from tests.support.dicom_series import change_file, find_series, phantom_labels, phantom_voxels, write_series
from tests.support.structure_sets import write_structures

VOXELS, MASK = phantom_voxels(), phantom_labels()
SQUARE = [(1, 1), (4, 1), (4, 3), (1, 3)]


def write_case(folder: Path, labels: dict[str, int] | None = None, **options: Any) -> list[Path]:
    """A case with a series and a SEG."""
    paths = write_series(folder / "scan", VOXELS, **options)
    write_segmentation(folder / "seg.dcm", MASK, find_series(folder / "scan")[0], labels or {"Liver": 1, "GTV-1": 2})
    return paths


def only(source: Path, **options: Any) -> SourceCase:
    scan = read_dicom(source, **{"labels": "liver=Liver,tumour=GTV*", **options})
    assert not scan.problems
    (case,) = scan.cases
    return case


def problem(source: Path, **options: Any) -> str:
    scan = read_dicom(source, **{"labels": "liver=Liver,tumour=GTV*", **options})
    assert not scan.cases
    (issue,) = scan.problems
    return issue.reason


def label_map(case: SourceCase) -> np.ndarray:
    values = {value: value for value in case.label_values}
    return sitk.GetArrayFromImage(read_label(case.label, values).image)


def test_a_case_has_its_series_and_its_segmentation_on_one_grid(tmp_path: Path) -> None:
    write_case(tmp_path / "c1", modality="CT")
    scan = read_dicom(tmp_path, labels="tumour=GTV*,liver=Liver")
    (case,) = scan.cases
    assert (case.name, case.centre, scan.channel_names) == ("c1", tmp_path.name, ("CT",))
    assert scan.labels == {"background": 0, "tumour": 1, "liver": 2}
    assert len(case.files) == 6
    case = pickle.loads(pickle.dumps(case))  # as it travels to the processes that convert
    image = read_image(case.channels[0]).image
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOXELS)
    assert image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(label_map(case), np.array([0, 2, 1])[MASK])
    label = read_label(case.label, {1: 1, 2: 2}).image
    assert (label.GetSpacing(), label.GetOrigin()) == (image.GetSpacing(), image.GetOrigin())
    assert not plan_conversion(scan, numbered_targets(scan, "X", 1, []), scan.labels).all_problems


def test_values_that_are_no_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    write_case(tmp_path / "c1", change=lambda _, dataset: setattr(dataset, "RescaleSlope", 0.5))
    image = read_image(only(tmp_path).channels[0]).image
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOXELS * 0.5)


def test_contours_are_labels_too(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "c1" / "scan", VOXELS)
    write_structures(tmp_path / "c1" / "rt.dcm", paths, {"Liver": [(1, SQUARE)], "Body": [(1, SQUARE)], "gtv": []})
    scan = read_dicom(tmp_path, labels="liver=liver")
    assert label_map(scan.cases[0]).sum() == 12
    assert scan.notes == ("structures that no label fits, which are background: Body (1), gtv (1)",)


def test_the_series_that_labels_were_drawn_on_is_the_image(tmp_path: Path) -> None:
    write_series(tmp_path / "c1" / "other", VOXELS + 1, description="localised")
    write_case(tmp_path / "c1")
    write_series(tmp_path / "c1" / "third", VOXELS[1:], description="T1")
    case = only(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(case.channels[0]).image), VOXELS)


def test_channels_are_chosen_by_description_or_folder_in_their_order(tmp_path: Path) -> None:
    write_series(tmp_path / "c1" / "adc", VOXELS + 1, description="ep2d (b0)")
    write_case(tmp_path / "c1", description="T2 TSE")
    scan = read_dicom(tmp_path, labels="liver=Liver", channels="ADC=adc,T2=t2*")
    assert scan.channel_names == ("ADC", "T2")
    values = [sitk.GetArrayFromImage(read_image(channel).image) for channel in scan.cases[0].channels]
    np.testing.assert_array_equal(values, [VOXELS + 1, VOXELS])
    assert "2 series fit channel all in" in problem(tmp_path, channels="all=*")
    assert "no series fits channel T1 in" in problem(tmp_path, channels="T1")


def test_a_series_that_is_no_clean_volume_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    write_series(tmp_path / "c1" / "dce", VOXELS, description="DCE")[2].unlink()
    write_case(tmp_path / "c1")
    assert only(tmp_path).name == "c1"
    assert "a slice is missing" in problem(tmp_path, channels="DCE")


def test_one_of_several_segmentations_is_chosen(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    shutil.copy(tmp_path / "c1" / "seg.dcm", tmp_path / "c1" / "reader_2.dcm")
    change_file(tmp_path / "c1" / "reader_2.dcm", SeriesDescription="second reader")
    assert "liver is in reader_2.dcm and in seg.dcm" in problem(tmp_path)
    assert only(tmp_path, annotations="second*").label.path.name == "reader_2.dcm"
    assert only(tmp_path, annotations="SEG.dcm").label.path.name == "seg.dcm"
    assert only(tmp_path, labels="liver=Liver", annotations="seg*").label_values == {1: "liver"}


def test_labels_may_come_from_several_objects(tmp_path: Path) -> None:
    paths = write_case(tmp_path / "c1")
    write_structures(tmp_path / "c1" / "rt.dcm", paths, {"node": [(4, SQUARE)]})
    array = label_map(only(tmp_path, labels="liver=Liver,node"))
    np.testing.assert_array_equal(array[:4], (MASK == 1)[:4])
    assert (array[4] == 2).sum() == 12


def test_structures_that_overlap_stop_or_the_later_label_wins(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "c1" / "scan", VOXELS)
    inner = [(2, 2), (3, 2), (3, 3), (2, 3)]
    write_structures(tmp_path / "c1" / "rt.dcm", paths, {"GTV": [(1, inner)], "Liver": [(1, SQUARE)]})
    with pytest.raises(DataError, match="4 voxels are in two structures"):
        label_map(only(tmp_path))
    array = label_map(only(tmp_path, overlaps="highest"))
    assert [(array == value).sum() for value in (1, 2)] == [8, 4]


def test_a_label_that_a_case_lacks_stops_or_is_background(tmp_path: Path) -> None:
    write_case(tmp_path / "c1", {"Liver": 1, "Spleen": 2})
    assert "has no structure for tumour; it has Liver, Spleen." in problem(tmp_path)
    np.testing.assert_array_equal(label_map(only(tmp_path, absent="background")), MASK == 1)
    assert "has no structure for kidney" in problem(tmp_path, labels="kidney", absent="background")


def test_without_labels_the_structures_are_listed(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    write_case(tmp_path / "c2", {"Liver": 1, "Spleen": 2})
    with pytest.raises(ConfigError, match=r"give the labels.*how many of 2 cases: Liver \(2\), (GTV-1|Spleen) \(1\)"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("name", ["DOE_Jane", "jane", "MRN12345"])
def test_cases_are_not_named_after_patients(tmp_path: Path, name: str) -> None:
    write_case(tmp_path / name)
    scan = read_dicom(tmp_path, labels="liver=Liver")
    (case,) = scan.cases
    assert case.name.startswith("case_")
    assert len(case.name) == 13
    assert case.patient_id == case.name
    assert "folders that are named after patients" in scan.notes[-1]
    for path in (tmp_path / name / "scan").iterdir():
        change_file(path, PatientIdentityRemoved="YES")
    assert read_dicom(tmp_path, labels="liver=Liver").cases[0].name == name


def test_a_copy_of_a_case_is_taken_once_and_said(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    shutil.copytree(tmp_path / "c1", tmp_path / "c2")
    write_case(tmp_path / "c3")
    scan = read_dicom(tmp_path, labels="liver=Liver,tumour=GTV*")
    assert [case.name for case in scan.cases] == ["c1", "c3"]
    assert not scan.problems
    (left,) = scan.left_out
    assert (left.name, left.reason) == (
        "c2",
        "is a copy of c1: the same series and annotations; it is taken once",
    )


def test_one_series_is_not_two_cases_of_unlike_labels(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    shutil.copytree(tmp_path / "c1" / "scan", tmp_path / "c2" / "scan")
    other = MASK.copy()
    other[2, 2, 3] = 0
    series = find_series(tmp_path / "c2" / "scan")[0]
    write_segmentation(tmp_path / "c2" / "seg.dcm", other, series, {"Liver": 1, "GTV-1": 2})
    scan = read_dicom(tmp_path, labels="liver=Liver,tumour=GTV*")
    assert [case.name for case in scan.cases] == ["c1"]
    (issue,) = scan.problems
    assert "is also in" in issue.reason
    assert "one image would be two cases; remove one" in issue.reason


def test_cases_of_one_patient_stay_together(tmp_path: Path) -> None:
    write_case(tmp_path / "first")
    write_case(tmp_path / "second")
    write_case(tmp_path / "third", patient=("", ""))
    scan = read_dicom(tmp_path, labels="liver=Liver")
    assert [(case.name, case.patient_id) for case in scan.cases] == [
        ("first", "first"),
        ("second", "first"),
        ("third", "third"),
    ]


def test_centres_come_from_a_table_and_cases_from_deeper_folders(tmp_path: Path) -> None:
    write_case(tmp_path / "src" / "p" / "s1")
    write_case(tmp_path / "src" / "p" / "s2")
    table = tmp_path / "centres.csv"
    table.write_text("case,centre\np/s1,Oslo\n")
    scan = read_dicom(tmp_path / "src", labels="liver=Liver", cases="*/*", centres=table)
    assert [(case.name, case.centre) for case in scan.cases] == [("p_s1", "Oslo")]
    assert [issue.line for issue in scan.problems] == [f"p/s2: is not in {table}"]
    assert numbered_targets(scan, "Liver", 7, []) == [TargetCentre("Oslo", "Dataset007_Liver_Oslo")]


def test_two_patients_in_a_case_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    change_file(tmp_path / "c1" / "seg.dcm", PatientID="9999")
    reason = problem(tmp_path)
    assert "seg.dcm is of another patient" in reason
    assert "9999" not in reason


def test_folders_without_what_a_case_needs_are_problems(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    (tmp_path / "c2").mkdir()
    write_series(tmp_path / "c3", VOXELS)
    scan = read_dicom(tmp_path, labels="liver=Liver")
    assert [case.name for case in scan.cases] == ["c1"]
    assert [(issue.name, issue.reason.removeprefix(f"{tmp_path}/")) for issue in scan.problems] == [
        ("c2", "c2 holds no DICOM image"),
        ("c3", "c3 holds no segmentation (SEG) or structure set (RTSTRUCT)"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": "background=x"}, "must be a name that is given once"),
        ({"labels": "a=x,a=y"}, "must be a name that is given once"),
        ({"labels": "a="}, "must have patterns"),
        ({"labels": ","}, "give 1 to 255 names"),
        ({"labels": "ignore=x,b=y"}, "ignore must be the last label"),
        ({"labels": "a", "cases": "../*"}, "must be a pattern of folders in SRC"),
    ],
)
def test_options_that_cannot_be_read_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    write_case(tmp_path / "c1")
    with pytest.raises(ConfigError, match=words):
        read_dicom(tmp_path, **options)


def test_patterns_may_be_in_a_file_and_must_not_contradict(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"liver": ["Liver", "hepar*"], "tumour": "GTV*|mass"}')
    patterns = parse_patterns(str(tmp_path / "labels.json"), "--labels")
    assert [patterns.name_of(text) for text in ("HEPAR 1", "Mass", "x")] == ["liver", "tumour", None]
    with pytest.raises(DataError, match="'GTV' is called both a and b"):
        parse_patterns("a=G*,b=*V", "--labels").name_of("GTV")


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no folder \*; SRC holds a folder of DICOM files per case"):
        read_dicom(tmp_path, labels="a")
    with pytest.raises(DataError, match="is no folder"):
        read_dicom(tmp_path / "none", labels="a")
    write_series(tmp_path / "case", VOXELS)
    with pytest.raises(DataError, match="give the folder above it"):
        read_dicom(tmp_path / "case", labels="a")
