"""Clean series become volumes in the right place; everything else is refused by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, SegmentationStorage, generate_uid

from fednnunet.dicom import library
from fednnunet.dicom.series import check_one_patient, look_into, read_volume
from fednnunet.errors import ConfigError, DataError
from tests.support.dicom_series import (
    AXIAL,
    OBLIQUE,
    ORIENTATIONS,
    SAGITTAL,
    change_file,
    find_series,
    phantom_voxels,
    write_series,
)

VOXELS = phantom_voxels((4, 3, 5))


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        find_series(folder)
    assert "\n" not in str(caught.value)
    assert "Jane" not in str(caught.value)
    assert "12345" not in str(caught.value)
    return str(caught.value)


def shuffled(index: int) -> str:
    return f"IM{(index * 3 + 1) % 4}"


def set_elements(**elements: object) -> Callable[[int, Dataset], None]:
    """A change of every slice."""

    def change(_: int, dataset: Dataset) -> None:
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_series_is_read_as_simpleitk_reads_it(tmp_path: Path, orientation: str) -> None:
    write_series(tmp_path, VOXELS, orientation=ORIENTATIONS[orientation], names=shuffled)
    (series,) = find_series(tmp_path)
    volume = read_volume(series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.spacing, image.GetSpacing(), rtol=1e-9)
    np.testing.assert_allclose(volume.origin, image.GetOrigin(), rtol=1e-9)
    np.testing.assert_allclose(volume.direction, image.GetDirection(), atol=1e-9)
    assert volume.as_image().GetSize() == image.GetSize()


def test_voxels_lie_where_their_headers_say(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS, orientation=OBLIQUE, spacing=(0.6, 0.8, 2.5))
    (series,) = find_series(tmp_path)
    image = read_volume(series).as_image()
    last = pydicom.dcmread(paths[-1])
    x, y = np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:])
    by_hand = np.array(last.ImagePositionPatient) + 4 * 0.6 * x + 2 * 0.8 * y  # column 4, row 2
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((4, 2, 3)), by_hand, atol=1e-5)
    assert series.spacing[2] == pytest.approx(2.5)


def test_order_and_distance_come_from_positions_alone(tmp_path: Path) -> None:
    def change(index: int, dataset: Dataset) -> None:
        dataset.InstanceNumber = 10 - index
        dataset.SpacingBetweenSlices, dataset.SliceThickness, dataset.SliceLocation = 7.0, 5.0, -index

    write_series(tmp_path, VOXELS, change=change, names=shuffled)
    (series,) = find_series(tmp_path)
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert volume.spacing == pytest.approx((0.6, 0.8, 2.5))


def test_slices_written_from_the_top_are_read_from_the_bottom(tmp_path: Path) -> None:
    write_series(tmp_path, VOXELS, spacing=(0.6, 0.8, -2.5))
    (series,) = find_series(tmp_path)
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.array, VOXELS[::-1])
    assert volume.spacing[2] == 2.5
    assert volume.origin[2] == 30 - 3 * 2.5


@pytest.mark.parametrize("slopes", [(1, 400, 400, 400), (1, 0.0037, 0.0037, 0.0037)])
def test_each_slice_has_its_own_slope(tmp_path: Path, slopes: tuple[float, ...]) -> None:
    def change(index: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slopes[index], -index

    write_series(tmp_path, VOXELS, change=change)
    (series,) = find_series(tmp_path)
    by_hand = VOXELS * np.array(slopes)[:, None, None] - np.arange(4)[:, None, None]
    np.testing.assert_allclose(read_volume(series).array, by_hand, rtol=1e-6)


def test_a_slope_without_an_intercept_is_applied_as_gdcm_does(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, VOXELS[:1], change=set_elements(RescaleSlope=0.5))
    array = read_volume(find_series(tmp_path)[0]).array
    np.testing.assert_array_equal(array, VOXELS[:1] * 0.5)
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32)))


def test_files_may_have_any_name_and_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "b", VOXELS, names=lambda index: f"1.2.{index}")
    (tmp_path / "a" / "b" / "1.2.3").rename(tmp_path / "slice")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "a" / "._1.2.0").write_bytes(b"\0" * 200)
    assert find_series(tmp_path)[0].shape == VOXELS.shape


def test_files_without_the_letters_dicm_are_read(tmp_path: Path) -> None:
    for path in write_series(tmp_path, VOXELS):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        content = path.read_bytes()
        path.write_bytes(content[132:] if content[128:132] == b"DICM" else content)
    (series,) = find_series(tmp_path)
    np.testing.assert_array_equal(read_volume(series).array, VOXELS)


def test_segmentations_and_structures_are_set_aside(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS)
    shutil.copy(paths[0], tmp_path / "seg")
    change_file(tmp_path / "seg", SOPClassUID=SegmentationStorage, SOPInstanceUID=generate_uid(), Modality="SEG")
    content = look_into(tmp_path)
    assert [header.path.name for header in content.segmentations] == ["seg"]
    assert content.series[0].shape == VOXELS.shape


def test_a_localizer_series_is_set_aside_beside_others_and_refused_alone(tmp_path: Path) -> None:
    write_series(tmp_path / "scout", VOXELS[:1], change=set_elements(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    assert "localizers (scouts)" in refusal(tmp_path)
    write_series(tmp_path / "ct", VOXELS)
    assert [series.shape for series in find_series(tmp_path)] == [VOXELS.shape]


def test_compressed_slices_are_decoded(tmp_path: Path) -> None:
    for path in write_series(tmp_path, VOXELS):
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    (series,) = find_series(tmp_path)
    np.testing.assert_array_equal(read_volume(series).array, VOXELS)


def test_jpeg_lossless_that_pydicom_cannot_decode_is_left_to_gdcm(tmp_path: Path) -> None:
    path = write_series(tmp_path, VOXELS[:1], change=set_elements(RescaleSlope=0.5, RescaleIntercept=-7.25))[0]
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "compressed.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")  # lossless, process 14
    writer.SetImageIO("GDCMImageIO")
    writer.Execute(sitk.GetImageFromArray(VOXELS[:1]))
    compressed = pydicom.dcmread(tmp_path / "compressed.dcm")
    (tmp_path / "compressed.dcm").unlink()
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
    assert dataset.file_meta.TransferSyntaxUID.name.startswith("JPEG Lossless")
    dataset.PixelData = compressed.PixelData
    dataset["PixelData"].is_undefined_length = True
    dataset.BitsStored, dataset.HighBit = compressed.BitsStored, compressed.HighBit
    dataset.PixelRepresentation = compressed.PixelRepresentation
    dataset.save_as(path)
    (series,) = find_series(tmp_path)
    np.testing.assert_allclose(read_volume(series).array, VOXELS[:1] * 0.5 - 7.25)


def test_a_compression_nobody_decodes_is_refused(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, VOXELS)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4, for videos
    dataset.save_as(path)
    with pytest.raises(DataError, match=r"slice_000.dcm.*no decoder for its compression"):
        read_volume(find_series(tmp_path)[0])


def test_missing_slices_are_named_by_their_neighbours(tmp_path: Path) -> None:
    paths = write_series(tmp_path, phantom_voxels((9, 3, 5)))
    paths[3].unlink()
    assert "a slice is missing between slice_002.dcm and slice_004.dcm: they lie 5 mm apart, others 2.5" in refusal(
        tmp_path
    )
    paths[4].unlink()
    assert "2 slices are missing between slice_002.dcm and slice_005.dcm" in refusal(tmp_path)


def test_uneven_slices_are_refused_and_rounded_positions_are_not(tmp_path: Path) -> None:
    def round_positions(_: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [round(float(value), 1) for value in dataset.ImagePositionPatient]

    write_series(tmp_path / "rounded", VOXELS, spacing=(1, 1, 0.625), change=round_positions)
    assert find_series(tmp_path)[0].spacing[2] == pytest.approx(0.625, abs=0.03)
    paths = write_series(tmp_path / "uneven", VOXELS)
    position = [*pydicom.dcmread(paths[1]).ImagePositionPatient[:2], 32.0]
    change_file(paths[1], ImagePositionPatient=position)
    assert "slices lie unevenly, from 2 to 3 mm apart" in refusal(tmp_path)


@pytest.mark.parametrize("place", [0, 2])
def test_a_slice_at_the_place_of_another_is_refused(tmp_path: Path, place: int) -> None:
    paths = write_series(tmp_path, VOXELS)
    shutil.copy(paths[place], tmp_path / "other.dcm")
    change_file(tmp_path / "other.dcm", SOPInstanceUID=generate_uid())
    message = refusal(tmp_path)
    assert f"slice_00{place}.dcm" in message
    assert "other.dcm" in message
    assert "at the same place" in message


def test_a_copied_file_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS)
    shutil.copy(paths[1], tmp_path / "z_copy.dcm")
    assert re.search(r"slice_001.dcm and \S*z_copy.dcm are one object", refusal(tmp_path))


def test_two_time_points_under_one_uid_are_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_series(tmp_path / name, VOXELS, study="1.2.3", frame_of_reference="1.2.4")
    for path in (tmp_path / "second").iterdir():
        change_file(path, SeriesInstanceUID=pydicom.dcmread(tmp_path / "first" / path.name).SeriesInstanceUID)
    assert "2 slices lie at each of 4 places: several time points" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "slice_002.dcm is a localizer"),
        ({"ImageOrientationPatient": list(SAGITTAL)}, "slice_000.dcm and slice_002.dcm have different orientations"),
        ({"PixelSpacing": [0.8, 0.61]}, "different PixelSpacing, 0.8 x 0.6 mm and 0.8 x 0.61 mm"),
        ({"PixelSpacing": [0.0, 0.6]}, "PixelSpacing that is not positive"),
        ({"PixelSpacing": None}, "slice_002.dcm has no PixelSpacing"),
        ({"ImagePositionPatient": None}, "slice_002.dcm has no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "slice_002.dcm has no ImageOrientationPatient"),
        ({"ImagePositionPatient": [0, 1]}, "ImagePositionPatient holds (0.0, 1.0); it must be 3 numbers"),
        ({"Rows": 4}, "slice_002.dcm has 4 x 5 rows and columns, others 3 x 5"),
        ({"NumberOfFrames": 3}, "slice_002.dcm is a multi-frame object (3 frames)"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "slice_002.dcm is RGB with 3 values per pixel"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "slice_002.dcm is MONOCHROME1"),
        ({"PatientID": "6"}, "slice_000.dcm and slice_002.dcm are of two patients (PatientID)"),
        ({"StudyInstanceUID": "1.2.3"}, "are of two studies"),
        ({"FrameOfReferenceUID": "1.2.3"}, "are of two coordinate systems"),
        ({"Modality": "PT"}, "are of two modalities"),
        ({"ImagePositionPatient": [-9.0, 20.0, 35.0]}, "slice_002.dcm lies 1 mm beside slice_001.dcm"),
    ],
)
def test_one_slice_that_does_not_fit_is_named(tmp_path: Path, elements: dict[str, object], words: str) -> None:
    paths = write_series(tmp_path, VOXELS)
    change_file(paths[2], **elements)
    message = refusal(tmp_path)
    assert words in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("degrees", [10, 1])
def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path: Path, degrees: float) -> None:
    def tilt(index: int, dataset: Dataset) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, round(y + index * 2.5 * np.tan(np.radians(degrees)), 6), z]

    write_series(tmp_path, VOXELS, change=tilt)
    assert f"a slope of {degrees} degrees (gantry tilt)" in refusal(tmp_path)


def test_a_single_slice_needs_an_extent(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, VOXELS[:1], change=set_elements(SliceThickness=3.0))
    assert find_series(tmp_path)[0].spacing == (0.6, 0.8, 3.0)
    change_file(path, SpacingBetweenSlices=4.0)
    assert find_series(tmp_path)[0].spacing[2] == 4.0
    change_file(path, SpacingBetweenSlices=None, SliceThickness=None)
    assert "a single slice without SpacingBetweenSlices and SliceThickness" in refusal(tmp_path)


def test_directions_that_are_not_at_right_angles_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, VOXELS, change=set_elements(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]))
    assert "not two unit vectors at a right angle" in refusal(tmp_path)


def test_enhanced_objects_of_one_frame_are_refused(tmp_path: Path) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
        del dataset.ImagePositionPatient

    write_series(tmp_path, VOXELS[:1], change=change)
    assert "multi-frame object (1 frames); export it as single slices" in refusal(tmp_path)


def test_two_patients_are_refused_where_one_is_expected(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS)
    write_series(tmp_path / "b", VOXELS, patient=("Roe^Jane", "777"), orientation=AXIAL)
    series = find_series(tmp_path)
    check_one_patient(series[:1], tmp_path)
    with pytest.raises(DataError, match="two patients") as caught:
        check_one_patient(series, tmp_path)
    assert "777" not in str(caught.value)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image.nii.gz").write_bytes(b"\x1f\x8b" + b"\0" * 300)
    assert "holds no DICOM image" in refusal(tmp_path)
    assert "is no folder" in refusal(tmp_path / "none")


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, VOXELS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"slice_000.dcm: its pixels cannot be read"):
        read_volume(find_series(tmp_path)[0])


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install fednnunet\[dicom\]"):
        find_series(tmp_path)
