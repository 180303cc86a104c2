"""Segmentations that are written as DICOM lie where their voxels lay, by highdicom, too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dictionary

from fednnunet.dicom.codes import load_codes
from fednnunet.dicom.segmentation import read_segmentation, segment_names, write_segmentation
from fednnunet.dicom.series import Series
from fednnunet.errors import ConfigError, DataError
from tests.support.dicom_series import (
    OBLIQUE,
    ORIENTATIONS,
    change_file,
    find_series,
    phantom_labels,
    phantom_voxels,
    write_series,
)

LABELS = {"background": 0, "liver": 1, "Left_Kidney": 2}
MASK = phantom_labels()
IMAGE = phantom_voxels()


def series_in(folder: Path, **options: Any) -> Series:
    write_series(folder, IMAGE, **options)
    return find_series(folder)[0]


def points(mask: np.ndarray, affine: np.ndarray) -> set[tuple[float, ...]]:
    """Places in mm of the voxels that are not 0, with their values."""
    indices = np.argwhere(mask)
    places = indices @ affine[:3, :3].T + affine[:3, 3]
    return {(*row, int(mask[tuple(index)])) for row, index in zip(places.round(3).tolist(), indices, strict=True)}


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
@pytest.mark.parametrize(
    ("encoding", "compression"), [("binary", "none"), ("labelmap", "rle"), ("labelmap", "jpeg-ls")]
)
def test_highdicom_finds_the_same_voxels_in_the_same_places(
    tmp_path: Path, orientation: str, encoding: Any, compression: Any
) -> None:
    series = series_in(
        tmp_path / "series",
        orientation=ORIENTATIONS[orientation],
        names=lambda index: f"IM{(index * 3) % 5}",
        change=lambda _, dataset: setattr(dataset, "SpacingBetweenSlices", 1.25),
    )
    path = tmp_path / "seg.dcm"
    write_segmentation(path, MASK, series, LABELS, encoding=encoding, compression=compression)
    np.testing.assert_array_equal(read_segmentation(path, series), MASK)

    seg = segread(path)
    by_source = seg.get_pixels_by_source_instance(series.sop_uids, combine_segments=True)
    np.testing.assert_array_equal(by_source, MASK)
    volume = seg.get_volume(combine_segments=True)
    direction = np.array(series.stack.direction).reshape(3, 3) * series.spacing
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction[:, ::-1], series.stack.origin  # (z, y, x)
    assert points(volume.array, volume.affine) == points(MASK, affine)


def test_a_segmentation_refers_to_its_series_and_says_what_its_segments_are(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    labels = {"background": 0, "Left_Kidney": 1, "breast_lesion": 2, "GTVp": 3, "ignore": 4}
    write_segmentation(tmp_path / "seg.dcm", MASK, series, labels)
    assert segment_names(tmp_path / "seg.dcm") == {1: "Left_Kidney", 2: "breast_lesion", 3: "GTVp"}
    seg = segread(tmp_path / "seg.dcm")
    assert (seg.PatientID, seg.StudyInstanceUID) == ("12345", series.study_uid)
    assert seg.FrameOfReferenceUID == series.frame_of_reference
    assert {uid for _, _, uid in seg.get_source_image_uids()} <= set(series.sop_uids)
    kidney, lesion, unknown = seg.SegmentSequence
    sct = dictionary.SCT
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == sct.Kidney.value == "64033007"
    modifier = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeValue == sct.Left.value == "7771000"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeValue == sct.Lesion.value
    assert lesion.AnatomicRegionSequence[0].CodeValue == sct.Breast.value
    assert unknown.SegmentedPropertyTypeCodeSequence[0].CodeValue == sct.Tissue.value


def test_regions_are_segments_that_may_overlap(tmp_path: Path) -> None:
    series, path = series_in(tmp_path / "series"), tmp_path / "seg.dcm"
    regions: dict[str, int | list[int]] = {"background": 0, "whole": [1, 2], "core": 2}
    write_segmentation(path, MASK, series, regions)
    assert segment_names(path) == {1: "whole", 2: "core"}
    pixels = segread(path).get_pixels_by_source_instance(series.sop_uids)
    np.testing.assert_array_equal(pixels, np.stack([MASK > 0, MASK == 2], axis=-1))
    np.testing.assert_array_equal(read_segmentation(path, series, overlaps="highest"), MASK)
    with pytest.raises(DataError, match="regions may overlap"):
        write_segmentation(path, MASK, series, regions, encoding="labelmap")


def test_values_with_gaps_become_numbers_without(tmp_path: Path) -> None:
    series, path = series_in(tmp_path / "series"), tmp_path / "seg.dcm"
    write_segmentation(path, MASK * 3, series, {"background": 0, "b": 6, "a": 3})
    assert segment_names(path) == {1: "a", 2: "b"}
    np.testing.assert_array_equal(read_segmentation(path, series, {1: 3, 2: 6}), MASK * 3)


def test_a_blank_segmentation_is_written_and_read(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    write_segmentation(tmp_path / "seg.dcm", np.zeros_like(MASK), series, LABELS)
    assert not read_segmentation(tmp_path / "seg.dcm", series).any()


def test_one_slice_alone_keeps_its_place(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    mask = np.zeros_like(MASK)
    mask[3, 2:4, 1:6] = 1
    write_segmentation(tmp_path / "seg.dcm", mask.astype(np.int64), series, LABELS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", series), mask)
    assert float(segread(tmp_path / "seg.dcm").get_volume().spacing[0]) == 2.5


def test_elements_that_deidentification_removed_are_empty(tmp_path: Path) -> None:
    removed = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate")

    def deidentify(_: int, dataset: Dataset) -> None:
        for keyword in (*removed, "StudyTime", "ReferringPhysicianName", "SliceThickness"):
            del dataset[keyword]

    series = series_in(tmp_path / "series", change=deidentify)
    write_segmentation(tmp_path / "seg.dcm", MASK, series, LABELS)
    seg = segread(tmp_path / "seg.dcm")
    assert not any(seg[keyword].value for keyword in removed)
    assert "PatientID" not in pydicom.dcmread(series.files[0])


def test_dates_that_deidentification_made_none_are_empty(tmp_path: Path) -> None:
    def blur(_: int, dataset: pydicom.Dataset) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.PatientBirthDate, dataset.StudyTime, dataset.StudyDate = "1970", "9999", "20200131"

    write_series(tmp_path / "ct", np.zeros((3, 4, 5), np.int16), change=blur)
    (series,) = find_series(tmp_path / "ct")
    write_segmentation(tmp_path / "seg.dcm", np.ones((3, 4, 5), np.uint8), series, {"tumour": 1})
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (written.PatientBirthDate, written.StudyTime, written.StudyDate) == ("", "", "20200131")


def test_directions_that_differ_in_their_last_digit_are_one(tmp_path: Path) -> None:
    def change(index: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [OBLIQUE[0] + index * 1e-6, *OBLIQUE[1:]]

    series = series_in(tmp_path / "series", orientation=OBLIQUE, change=change)
    write_segmentation(tmp_path / "seg.dcm", MASK, series, LABELS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", series), MASK)


def test_segments_can_be_given_other_values_or_left_out(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    write_segmentation(tmp_path / "seg.dcm", MASK, series, LABELS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", series, {2: 7}), (MASK == 2) * 7)


def by_highdicom(path: Path, series: Series, masks: np.ndarray) -> None:
    """Segments 1, 2, … of masks (Z, Y, X, segment), written from the last slice to the first, with blank frames."""
    sct = dictionary.SCT
    descriptions = [
        highdicom.seg.SegmentDescription(n, f"mass {n}", sct.MorphologicallyAbnormalStructure, sct.Mass, "MANUAL")
        for n in range(1, masks.shape[3] + 1)
    ]
    sources = [pydicom.dcmread(file) for file in reversed(series.files)]
    highdicom.seg.Segmentation(
        sources,
        masks[::-1].astype(np.uint8),
        *("BINARY", descriptions, highdicom.UID(), 2, highdicom.UID(), 1, "m", "m", "1", "0"),
        omit_empty_frames=False,
    ).save_as(path)


def test_segmentations_of_others_are_read(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    by_highdicom(tmp_path / "seg.dcm", series, np.stack([MASK == 1, MASK == 2], axis=-1))
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", series), MASK)


def test_voxels_of_two_segments_are_refused_unless_they_get_one_value(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    path = tmp_path / "seg.dcm"
    by_highdicom(path, series, np.stack([MASK > 0, MASK == 2], axis=-1))
    shared = int((MASK == 2).sum(axis=(1, 2)).max())
    with pytest.raises(DataError, match=f"{shared} voxels are in two structures, of the values 1 and 2"):
        read_segmentation(path, series)
    np.testing.assert_array_equal(read_segmentation(path, series, {1: 1, 2: 1}), MASK > 0)
    np.testing.assert_array_equal(read_segmentation(path, series, overlaps="highest"), MASK)


@pytest.mark.parametrize(
    ("mask", "labels", "words"),
    [
        (MASK[1:], LABELS, r"has the shape \(4, 6, 7\).*\(5, 6, 7\)"),
        (MASK * 3, LABELS, "holds the value 3, which is of no label"),
        (MASK.astype(np.int16) - 1, LABELS, "holds the value -1, which is of no label"),
        (MASK.astype(np.uint32) * 2**30, LABELS, "holds the value 1073741824, which is of no label"),
        (MASK.astype(np.float32), LABELS, "holds float32, not whole numbers"),
        (np.zeros_like(MASK), {"background": 0}, "no label but background"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(
    tmp_path: Path, mask: np.ndarray, labels: dict[str, int], words: str
) -> None:
    series = series_in(tmp_path / "series")
    with pytest.raises(DataError, match=words):
        write_segmentation(tmp_path / "out" / "seg.dcm", mask, series, labels)
    assert not (tmp_path / "out").exists()


def test_a_series_without_a_coordinate_system_is_refused(tmp_path: Path) -> None:
    def change(_: int, dataset: Dataset) -> None:
        del dataset.FrameOfReferenceUID

    series = series_in(tmp_path / "series", change=change)
    with pytest.raises(DataError, match="its files have no FrameOfReferenceUID"):
        write_segmentation(tmp_path / "seg.dcm", MASK, series, LABELS)


def test_a_segmentation_of_another_grid_is_refused(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    path = tmp_path / "seg.dcm"
    write_segmentation(path, MASK, series, LABELS)
    moved = {"origin": (-10.0, 20.5, 30.0), "frame_of_reference": series.frame_of_reference}
    for name, options, words in (
        ("moved", moved, r"frame 1 lies 0.5 mm off the grid"),
        ("coarse", moved | {"origin": (-10.0, 20.0, 30.0), "spacing": (0.6, 0.8, 5.0)}, "mm off the grid"),
        ("turned", moved | {"orientation": OBLIQUE}, "mm off the grid"),
        ("other", {}, "another coordinate system"),
    ):
        with pytest.raises(DataError, match=words):
            read_segmentation(path, series_in(tmp_path / name, **options))
    write_series(tmp_path / "wide", phantom_voxels((5, 6, 8)), frame_of_reference=series.frame_of_reference)
    with pytest.raises(DataError, match="rows and columns"):
        read_segmentation(path, find_series(tmp_path / "wide")[0])


def test_fractional_segmentations_and_images_are_refused(tmp_path: Path) -> None:
    series = series_in(tmp_path / "series")
    with pytest.raises(DataError, match=r"slice_000.dcm is no DICOM segmentation"):
        read_segmentation(series.files[0], series)
    write_segmentation(tmp_path / "seg.dcm", MASK, series, LABELS)
    change_file(tmp_path / "seg.dcm", SegmentationType="FRACTIONAL")
    with pytest.raises(DataError, match="is a FRACTIONAL segmentation"):
        read_segmentation(tmp_path / "seg.dcm", series)


def test_every_code_of_the_table_is_in_the_dictionary_and_means_what_its_label_says() -> None:
    meanings = load_codes().meanings
    for name, meaning in meanings.items():
        for concept in meaning.concepts:
            assert not isinstance(concept, str) or getattr(dictionary.SCT, concept).value.isdigit(), name
    assert meanings["tumour"] == meanings["tumor"]
    assert getattr(dictionary.SCT, str(meanings["prostate"].type)).value == "41216001"
    assert ("right" in "".join(name for name, meaning in meanings.items() if meaning.laterality == "Left")) is False


def test_a_users_file_comes_before_the_table(tmp_path: Path) -> None:
    own = tmp_path / "codes.json"
    own.write_text('{"Fetal abdomen": {"category": "AnatomicalStructure", "type": ["1", "99X", "Fetal abdomen"]}}')
    codes = load_codes(own)
    assert codes.of("fetal_abdomen").type == ("1", "99X", "Fetal abdomen")
    assert codes.of("LIVER").type == "Liver"
    for text, words in (
        ('{"a": {"category": "Tissue", "type": "Livver"}}', "a: 'Livver' is no keyword of SNOMED CT"),
        ('{"a": {"category": "Tissue"}}', "a.type: is missing"),
        ('{"a": {"category": "Tissue", "type": ["", "SCT", "x"]}}', "is no code of up to 16"),
        ("[", "Invalid JSON"),
    ):
        own.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_codes(own)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_codes(tmp_path / "none.json")
