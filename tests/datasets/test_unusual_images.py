"""Unusual images and label maps are read right, told, or stopped at, in the same way by the check and the summary."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from skimage.io import imsave

from fednnunet.datasets.image_checks import check_images, check_images_once, choose_reader
from fednnunet.datasets.quality.checks import NOTES, find_issues
from fednnunet.datasets.quality.measure import measure_centre
from fednnunet.datasets.quality.summary import DataIssue
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.staging import raw_digest
from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import DataNote, NoteKind
from tests.support import image_cases
from tests.support.disks import disk_at
from tests.support.image_cases import image_of, label_of, read, rename
from tests.support.raw_datasets import change_description

MakeDataset = Callable[..., Path]
Change = Callable[[Path], None]

STOPPED = [
    (image_cases.cut_image, "cannot be read", r"case_002_0000.nii.gz is cut off"),
    (image_cases.cut_label, "cannot be read", r"case_002.nii.gz is cut off"),
    (
        image_cases.image_of_four_dimensions,
        "cannot be read",
        r"case_002_0000.nii.gz has 4 dimensions, 40 x 40 x 6 x 2 \(X, Y, Z and more\); nnU-Net takes a 3D file per",
    ),
    (image_cases.label_of_four_dimensions, "cannot be read", r"case_002.nii.gz has 4 dimensions, 40 x 40 x 6 x 2"),
    (image_cases.label_of_fractions, "no integer", r"case_002.nii.gz holds value 0.9523, which is not an integer"),
    (image_cases.not_finite_label, "cannot be read", r"case_002.nii.gz holds NaN or infinity in \d+ voxels"),
    (
        image_cases.label_whose_forms_disagree,
        "ambiguous header",
        r"case_002.nii.gz lies mirrored or turned on .* by one",
    ),
]
TOLD = [
    (image_cases.label_a_hair_below_one, DataNote(kind=NoteKind.LABEL_ROUNDED, cases=1)),
    (image_cases.not_finite, DataNote(kind=NoteKind.NOT_FINITE, cases=1, voxels=80)),
    (image_cases.constant_image, DataNote(kind=NoteKind.ONE_VALUE, cases=1)),
    (image_cases.ignored_everywhere, DataNote(kind=NoteKind.IGNORED_EVERYWHERE, cases=1)),
    (image_cases.mirrored_label, DataNote(kind=NoteKind.LABEL_REORIENTED, cases=1)),
    (image_cases.turned_label, DataNote(kind=NoteKind.LABEL_REORIENTED, cases=1)),
    (image_cases.shifted_label, DataNote(kind=NoteKind.NEARLY_ONE_GRID, cases=1)),
    (image_cases.label_without_position, DataNote(kind=NoteKind.NO_POSITION, cases=1)),
    (image_cases.micrometres, DataNote(kind=NoteKind.UNIT, cases=6)),
    (image_cases.metres, DataNote(kind=NoteKind.UNIT, cases=6)),
    (image_cases.two_spacings, DataNote(kind=NoteKind.TWO_SPACINGS, cases=1)),
]


def name(value: object) -> str:
    return getattr(value, "__name__", "")


def issues(dataset: RawDataset) -> list[DataIssue]:
    return find_issues([measure_centre(dataset, "Oslo")])


def read_as_nnunet(dataset: RawDataset, case: int = 2) -> tuple[np.ndarray, np.ndarray, dict]:
    """Image and label map (Z, Y, X), and the image's properties, by nnU-Net's reader."""
    reader = choose_reader(dataset, dataset.cases[case], "Oslo")()
    image, properties = reader.read_images([str(path) for path in dataset.cases[case].images])
    return image[0], reader.read_seg(str(dataset.cases[case].label))[0][0], properties


@pytest.mark.parametrize(("change", "kind", "text"), STOPPED, ids=name)
def test_training_stops_and_the_summary_says_so(
    make_dataset: MakeDataset, change: Change, kind: str, text: str
) -> None:
    folder = make_dataset()
    change(folder)
    dataset = read_dataset(folder, "Oslo")
    with pytest.raises(DataError, match=rf"^centre Oslo: .*{text}"):
        check_images(dataset, "Oslo")
    (issue,) = issues(dataset)
    assert (issue.severity, issue.kind, issue.cases) == ("bad", kind, ("case_002",))
    assert re.search(text, issue.found)


@pytest.mark.parametrize(("change", "note"), TOLD, ids=name)
def test_training_goes_on_and_the_summary_tells_the_same(
    make_dataset: MakeDataset, change: Change, note: DataNote
) -> None:
    folder = make_dataset()
    change(folder)
    dataset = read_dataset(folder, "Oslo")
    checked = check_images(dataset, "Oslo")
    assert checked.notes == (note,)
    assert checked.dataset == dataset
    (issue,) = issues(dataset)
    assert (issue.severity, issue.kind, issue.found) == ("warning", NOTES[note.kind][0], str(note))
    assert len(issue.cases) == note.cases


def test_sound_datasets_are_left_as_they_are(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = read_dataset(make_dataset(), "Oslo")
    checked = check_images_once(dataset, "Oslo", "check", tmp_path / "cache")
    assert (checked.dataset, checked.notes) == (dataset, ())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["checked_check.json"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])  # SimpleITK's reader and nibabel's
@pytest.mark.parametrize(
    "change", [image_cases.mirrored_label, image_cases.turned_label, image_cases.label_a_hair_below_one]
)
def test_labels_are_corrected_beside_the_originals(
    make_dataset: MakeDataset, tmp_path: Path, ending: str, change: Change
) -> None:
    folder = make_dataset()
    rename(folder, ending)
    expected, affine = read(label_of(folder)), nib.load(image_of(folder)).affine
    change(folder)
    dataset, original = read_dataset(folder, "Oslo"), label_of(folder).read_bytes()
    corrected = check_images_once(dataset, "Oslo", "check", tmp_path / "cache").dataset
    label = nib.load(corrected.cases[2].label)
    assert np.array_equal(np.asarray(label.dataobj), expected)
    assert np.array_equal(read_as_nnunet(corrected)[1], expected.transpose())
    assert np.allclose(label.affine, affine)
    assert label_of(folder).read_bytes() == original
    assert corrected.cases[2].images == dataset.cases[2].images
    assert [*corrected.cases[:2], *corrected.cases[3:]] == [*dataset.cases[:2], *dataset.cases[3:]]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("change", [image_cases.micrometres, image_cases.metres])
def test_spacing_is_in_mm_whatever_the_unit_and_the_reader(
    make_dataset: MakeDataset, tmp_path: Path, ending: str, change: Change
) -> None:
    folder = make_dataset()
    rename(folder, ending)
    voxels = read(image_of(folder))
    change(folder)
    corrected = check_images_once(read_dataset(folder, "Oslo"), "Oslo", "check", tmp_path / "cache").dataset
    image, label, properties = read_as_nnunet(corrected)
    assert properties["spacing"] == pytest.approx([3, 1, 1])
    assert np.array_equal(image, voxels.transpose())
    choose_reader(corrected, corrected.cases[2], "Oslo")().write_seg(label, str(tmp_path / f"out{ending}"), properties)
    assert sitk.ReadImage(str(tmp_path / f"out{ending}")).GetSpacing() == pytest.approx((1, 1, 3))


def test_an_image_in_mm_keeps_every_byte_but_those_of_its_header(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset()
    rename(folder, ".nii")
    image_cases.micrometres(folder)
    corrected = check_images_once(read_dataset(folder, "Oslo"), "Oslo", "check", tmp_path / "cache").dataset
    original, written = (path.read_bytes() for path in (image_of(folder), corrected.cases[2].images[0]))
    assert original[348:] == written[348:]
    assert original[:348] != written[:348]


def test_a_second_channel_is_brought_onto_the_grid_of_the_first(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset()
    for number in range(6):
        second = image_of(folder, number).with_name(f"case_{number:03d}_0001.nii.gz")
        second.write_bytes(image_of(folder, number).read_bytes())
    expected = read(image_of(folder))
    change_description(folder, channel_names={"0": "T1", "1": "T2"})
    image_cases.reorient(second.with_name("case_002_0001.nii.gz"), [[0, 1], [1, -1], [2, -1]])
    checked = check_images_once(read_dataset(folder, "Oslo"), "Oslo", "check", tmp_path / "cache")
    assert checked.notes == (DataNote(kind=NoteKind.CHANNEL_REORIENTED, cases=1),)
    reader = choose_reader(checked.dataset, checked.dataset.cases[2], "Oslo")()
    image, _ = reader.read_images([str(path) for path in checked.dataset.cases[2].images])
    assert np.array_equal(image, np.stack([expected.transpose()] * 2))


def test_ignoring_headers_goes_by_voxels(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset()
    image_cases.mirrored_label(folder)
    dataset = read_dataset(folder, "Oslo")
    checked = check_images_once(dataset, "Oslo", "ignore", tmp_path / "cache")
    assert (checked.dataset, checked.notes) == (dataset, (DataNote(kind=NoteKind.HEADERS_IGNORED, cases=1),))


def test_what_was_found_is_known_the_next_time_and_files_that_are_gone_are_written_again(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = make_dataset(), tmp_path / "cache"
    image_cases.mirrored_label(folder)
    dataset = read_dataset(folder, "Oslo")
    first = check_images_once(dataset, "Oslo", "check", cache)
    digest = raw_digest(first.dataset)
    with monkeypatch.context() as patch:
        patch.setattr("fednnunet.datasets.image_checks.check_images", lambda *_, **__: pytest.fail("checked again"))
        assert check_images_once(dataset, "Oslo", "check", cache) == first
    first.dataset.cases[2].label.unlink()
    assert check_images_once(dataset, "Oslo", "check", cache) == first
    assert raw_digest(first.dataset) == digest  # so that what was made of it stays valid


def test_nan_that_the_reader_keeps_stops(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    rename(folder, ".nii")  # nibabel's reader
    image_cases.not_finite(folder)
    with pytest.raises(DataError, match=r"centre Oslo: .*case_002_0000.nii holds NaN or infinity"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_colours_are_not_taken_for_slices(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    for path in [*folder.glob("*/*.nii.gz")]:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        colours = np.stack([array] * 3, axis=-1) if path.name == "case_002_0000.nii.gz" else array
        image = sitk.GetImageFromArray(colours.astype(np.uint8), isVector=colours.ndim == 4)
        sitk.WriteImage(image, str(path).replace(".nii.gz", ".mha"))
        path.unlink()
    change_description(folder, file_ending=".mha")
    with pytest.raises(DataError, match=r"case_002_0000.mha has 3 values per voxel; it must have one"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_several_processes_find_the_same(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset()
    image_cases.mirrored_label(folder)
    dataset = read_dataset(folder, "Oslo")
    one, two = (check_images(dataset, "Oslo", corrected=tmp_path / "corrected", workers=workers) for workers in (1, 2))
    assert one == two
    image_cases.cut_image(folder)
    with pytest.raises(DataError, match=r"^centre Oslo: .*case_002_0000.nii.gz is cut off"):
        check_images(dataset, "Oslo", workers=2)


def test_labels_are_rounded_in_formats_without_a_header(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset()
    for path in [*folder.glob("*/*.nii.gz")]:
        tifffile.imwrite(path.with_name(path.name.replace(".nii.gz", ".tiff")), read(path).transpose())
        path.with_name(path.name.replace(".nii.gz", ".json").replace("_0000", "")).write_text('{"spacing": [3, 1, 1]}')
        path.unlink()
    change_description(folder, file_ending=".tiff")
    expected = tifffile.imread(label_of(folder))
    tifffile.imwrite(label_of(folder), expected * np.float32(1.0001))
    checked = check_images_once(read_dataset(folder, "Oslo"), "Oslo", "check", tmp_path / "cache")
    assert checked.notes == (DataNote(kind=NoteKind.LABEL_ROUNDED, cases=1),)
    case = checked.dataset.cases[2]
    label, properties = choose_reader(checked.dataset, case, "Oslo")().read_seg(str(case.label))
    assert np.array_equal(label[0], expected)
    assert properties["spacing"] == [3, 1, 1]


def test_one_constant_channel_of_several_in_a_file_is_told(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    rng = np.random.default_rng(0)
    for path in [*folder.glob("*/*.nii.gz")]:
        opaque = np.full((20, 24, 1), 255)
        colours = np.concatenate([rng.integers(0, 255, (20, 24, 3)), opaque], axis=-1)
        voxels = colours if path.parent.name == "imagesTr" else colours[..., 0] % 2
        imsave(path.with_name(path.name.replace(".nii.gz", ".png")), voxels.astype(np.uint8), check_contrast=False)
        path.unlink()
    change_description(folder, file_ending=".png", channel_names={str(i): name for i, name in enumerate("RGBA")})
    notes = check_images(read_dataset(folder, "Oslo"), "Oslo").notes
    assert notes == (DataNote(kind=NoteKind.ONE_VALUE, cases=6),)


def test_corrected_files_that_the_disk_has_no_room_for_are_not_used(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset(shape=(20, 120, 120))
    image_cases.mirrored_label(folder)
    image_cases.change_voxels(
        label_of(folder), lambda array: np.random.default_rng(0).integers(0, 2, array.shape, np.uint8)
    )
    with disk_at(tmp_path / "disk", 0.02) as disk:
        with pytest.raises(OSError, match=r"the disk is full|No space"):
            check_images(read_dataset(folder, "Oslo"), "Oslo", corrected=disk)
        assert not [path for path in disk.rglob("*") if path.is_file()]
