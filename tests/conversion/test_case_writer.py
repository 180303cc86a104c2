"""A case whose files are unusual is converted right, with a note that says so, or is a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.conversion import case_writer, images, label_maps
from fednnunet.conversion.case_writer import CaseTask, convert_case
from fednnunet.conversion.manifest import CaseRecord
from fednnunet.conversion.options import Options
from fednnunet.conversion.scan_result import ConversionIssue, SourceCase, SourceImage
from tests.support.disks import disk_at
from tests.support.image_cases import SHAPE, change_voxels, cut, voxels, write


def mask() -> np.ndarray:
    """Label 1 in a corner, so that it is another thing mirrored along any axis."""
    array = np.zeros(SHAPE, np.uint8)
    array[:2, 1:5, 1:4] = 1
    return array


class Source:
    """Image (``channels`` are further ones) and label map of one case; ``convert`` writes the case anew each time."""

    def __init__(self, folder: Path) -> None:
        self.image, self.label, self.target = folder / "scan.nii.gz", folder / "seg.nii.gz", folder / "Dataset601_A"
        self.channels: tuple[Path, ...] = ()
        write(voxels(), self.image)
        write(mask(), self.label)

    def convert(self, ignored: int | None = None, **options: Any) -> CaseRecord | ConversionIssue:
        channels = tuple(map(SourceImage, (self.image, *self.channels)))
        case = SourceCase("one", "A", channels, SourceImage(self.label), {1: "tumour"})
        values = {1: 1} if ignored is None else {1: 1, ignored: ignored}
        return convert_case(self.task(case, values, ignored, Options(**options)))

    def task(self, case: SourceCase, values: dict[int, int], ignored: int | None, options: Options) -> CaseTask:
        return CaseTask(
            case, self.image.parent, self.target, "imagesTr", "labelsTr", ".nii.gz", values, ignored, options
        )

    def notes(self, **options: Any) -> list[str]:
        record = self.convert(**options)
        assert isinstance(record, CaseRecord), record
        return record.notes

    def problem(self, **options: Any) -> str:
        issue = self.convert(**options)
        assert isinstance(issue, ConversionIssue), issue
        assert not list(self.target.rglob("*.nii.gz"))
        return issue.reason

    def written(self, part: str) -> sitk.Image:
        (path,) = (self.target / part).iterdir()
        return sitk.ReadImage(str(path))

    @property
    def written_label(self) -> np.ndarray:
        return sitk.GetArrayFromImage(self.written("labelsTr"))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def test_a_sound_case_is_copied_without_a_note(source: Source) -> None:
    assert source.notes() == []
    assert (source.target / "imagesTr" / "one_0000.nii.gz").read_bytes() == source.image.read_bytes()
    assert (source.target / "labelsTr" / "one.nii.gz").read_bytes() == source.label.read_bytes()


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_file_that_was_cut_off_is_a_problem(source: Source, which: str) -> None:
    path = getattr(source, which)
    cut(path, path.stat().st_size // 3)
    assert source.problem().startswith(f"{path} is cut off")


def test_nan_and_infinity_in_an_image_are_told_and_written_as_0(source: Source) -> None:
    array = voxels()
    array[:, 0, 0], array[0, -1, -1] = np.nan, -np.inf
    write(array, source.image)
    assert source.notes() == [f"{images.NOT_FINITE} ({SHAPE[0] + 1} voxels in {source.image})"]
    (path,) = (source.target / "imagesTr").iterdir()
    assert (np.asarray(nib.load(path).dataobj) == np.where(np.isfinite(array), array, 0).transpose()).all()


def test_nan_in_a_label_map_is_a_problem(source: Source) -> None:
    array = mask().astype(np.float32)
    array[0, 0, :3] = np.nan
    write(array, source.label)
    assert source.problem() == f"{source.label} holds NaN or infinity in 3 voxels; a label map holds integers"


@pytest.mark.parametrize("value", [0.9999999, 1.0009])
def test_label_values_a_hair_off_an_integer_are_rounded(source: Source, value: float) -> None:
    write(mask() * np.float32(value), source.label)
    assert source.notes() == [f"{label_maps.ROUNDED} ({value} in {source.label})"]
    assert (source.written_label == mask()).all()


@pytest.mark.parametrize(("value", "shown"), [(0.998, "0.998"), (1.5, "1.5"), (0.99899995, "0.99899995")])
def test_label_values_between_integers_are_a_problem_that_shows_them_in_full(
    source: Source, value: float, shown: str
) -> None:
    write(mask() * np.float32(value), source.label)
    assert source.problem().startswith(f"{source.label} holds the value {shown}, which is not an integer")


@pytest.mark.parametrize("unit", ["micron", "meter"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_lengths_in_other_units_are_written_in_mm(source: Source, tmp_path: Path, unit: str, ending: str) -> None:
    factor = {"micron": 1000.0, "meter": 0.001}[unit]
    for which in ("image", "label"):
        file = nib.load(getattr(source, which))
        affine = np.diag([factor, factor, factor, 1]) @ file.affine
        changed = nib.Nifti1Image(np.asarray(file.dataobj), affine)
        changed.header.set_xyzt_units(unit)
        path = tmp_path / f"other_{which}{ending}"
        nib.save(changed, path)
        setattr(source, which, path)
    assert source.notes() == [f"{images.UNIT} ({unit} in {path})" for path in (source.image, source.label)]
    for part in ("imagesTr", "labelsTr"):
        assert source.written(part).GetSpacing() == pytest.approx((1, 1, 3))
        (path,) = (source.target / part).iterdir()
        header = nib.load(path).header
        assert header.get_xyzt_units()[0] == "mm"
        assert header.get_zooms() == pytest.approx((1, 1, 3))


def reoriented(path: Path, axes: str) -> None:
    """Write a file with other axes and a header that says so: every voxel stays where it is in the world."""
    image = nib.load(path)
    to = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    nib.save(image.as_reoriented(to), path)


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAR", "PIL"])
def test_a_mirrored_or_turned_label_map_is_brought_onto_its_image(source: Source, axes: str) -> None:
    reoriented(source.label, axes)
    assert source.notes() == [label_maps.REORIENTED]
    assert (source.written_label == mask()).all()
    image, label = source.written("imagesTr"), source.written("labelsTr")
    assert label.GetDirection() == image.GetDirection()
    assert label.GetOrigin() == pytest.approx(image.GetOrigin())


def test_a_label_map_that_is_mirrored_by_one_of_two_forms_is_a_problem(source: Source) -> None:
    file = nib.load(source.label)
    mirrored = file.affine @ nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], file.shape)
    image = nib.Nifti1Image(np.asarray(file.dataobj), None)
    image.set_qform(file.affine, 1)
    image.set_sform(mirrored, 1)
    nib.save(image, source.label)
    assert sitk.ReadImage(str(source.label)).GetDirection()[0] == -sitk.ReadImage(str(source.image)).GetDirection()[0]
    assert source.problem().startswith(
        f"{source.label} lies mirrored or turned on scan.nii.gz by one of qform and sform, and not by the other: "
    )
    assert source.notes(headers="image") == [label_maps.REPLACED_REORIENTED]
    assert (source.written_label == mask()).all()


def test_two_spacings_in_a_header_are_told_and_one_is_written(source: Source) -> None:
    for path in (source.image, source.label):
        file = nib.load(path)
        image = nib.Nifti1Image(np.asarray(file.dataobj), None)
        image.set_qform(file.affine, 1)
        image.set_sform(file.affine @ np.diag([1, 1, 2, 1]), 2)
        image.header.set_zooms((1, 1, 3))
        nib.save(image, path)
    assert source.notes() == [f"{images.TWO_SPACINGS} ({path})" for path in (source.image, source.label)]
    (path,) = (source.target / "imagesTr").iterdir()
    written = nib.load(path)
    assert np.linalg.norm(written.get_sform()[:3, :3], axis=0) == pytest.approx((1, 1, 3))
    assert written.header.get_zooms() == pytest.approx((1, 1, 3))


def sheared(path: Path, shear: float) -> None:
    file = nib.load(path)
    affine = file.affine.copy()
    affine[0, 1] = shear
    header = file.header.copy()
    header.set_sform(affine, 1)
    header.set_qform(None, 0)
    nib.save(nib.Nifti1Image(np.asarray(file.dataobj), None, header), path)


def test_axes_that_are_put_right_are_told(source: Source) -> None:
    for path in (source.image, source.label):
        sheared(path, 0.01)
    assert source.notes() == [f"{images.SHEARED} (0.29 degrees in {path})" for path in (source.image, source.label)]
    sheared(source.label, np.nan)
    assert "are not three directions by its header" in source.problem()


def test_a_mirrored_channel_is_brought_onto_the_first(source: Source, tmp_path: Path) -> None:
    second = tmp_path / "second.nii.gz"
    write(voxels() + 1, second)
    reoriented(second, "LPI")
    source.channels += (second,)
    assert source.notes() == [label_maps.CHANNEL_REORIENTED]
    written = source.target / "imagesTr" / "one_0001.nii.gz"
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(written))) == voxels() + 1).all()


def test_an_image_and_label_of_one_orientation_stay_as_they_are(source: Source) -> None:
    for path in (source.image, source.label):
        reoriented(path, "PIL")
    assert source.notes() == []
    assert (source.target / "labelsTr" / "one.nii.gz").read_bytes() == source.label.read_bytes()


def test_the_images_header_wins_if_asked_and_mirrored_labels_are_told(source: Source) -> None:
    reoriented(source.label, "RAS")
    assert source.notes(headers="image") == [label_maps.REPLACED_REORIENTED]
    assert (source.written_label == mask()[:, ::-1, ::-1]).all()
    write(mask(), source.label)
    move(source.label, 5)
    assert source.notes(headers="image") == [f"{label_maps.REPLACED} (origin differed)"]
    assert (source.written_label == mask()).all()
    assert "differ in origin" in source.problem()


def move(path: Path, mm: float) -> None:
    file = nib.load(path)
    affine = file.affine.copy()
    affine[0, 3] += mm
    nib.save(nib.Nifti1Image(np.asarray(file.dataobj), affine), path)


def test_a_mirrored_label_map_that_lies_elsewhere_is_a_problem(source: Source) -> None:
    reoriented(source.label, "RAS")
    move(source.label, 0.4)
    assert f"{source.label} and scan.nii.gz differ in origin" in source.problem()


def test_what_cannot_be_learned_from_is_told(source: Source) -> None:
    write(voxels() * 0 + 7, source.image)
    assert source.notes() == [f"{case_writer.ONE_VALUE} (7 in {source.image})"]
    write(voxels(), source.image)
    write(mask() * 0, source.label)
    assert source.notes(ignored=2) == [case_writer.EMPTY]
    write(mask() * 0 + 2, source.label)
    assert source.notes(ignored=2) == [case_writer.IGNORED]


def test_a_disk_that_fills_is_no_converted_case(source: Source, tmp_path: Path) -> None:
    """SimpleITK cuts a NIfTI file off on a full disk, and says nothing."""
    rng = np.random.default_rng(0)
    write(rng.random((20, 64, 64), np.float32), source.image)
    change_voxels(source.image, lambda array: np.stack([array, array], -1))
    write(np.ones((20, 64, 64), np.uint8), source.label)
    with disk_at(tmp_path / "disk", 0.1) as disk:
        source.target = disk / "Dataset601_A"
        case = SourceCase("one", "A", (SourceImage(source.image, frame=1),), SourceImage(source.label), {1: "tumour"})
        task = source.task(case, {1: 1}, None, Options())
        with pytest.raises(OSError, match="the disk is full"):
            convert_case(task)
        assert not [path for path in disk.rglob("*") if path.is_file()]
