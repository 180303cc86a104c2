"""Measures of a centre's cases and issues found in them, against numbers known from how the cases were made."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from skimage.io import imsave

from fednnunet.datasets.quality.checks import find_issues
from fednnunet.datasets.quality.measure import (
    TO_LPS,
    anatomical_axes,
    content_digest,
    direction_of,
    image_digests,
    measure_centre,
    slice_plane,
)
from fednnunet.datasets.quality.summary import CentreSummary, DataIssue
from fednnunet.datasets.raw import list_cases
from tests.conftest import write_boxes

Change = Callable[[sitk.Image], sitk.Image]


def rewrite(path: Path, change: Change) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))


def both(folder: Path, case: int, change: Change) -> None:
    """Change an image and its label alike."""
    rewrite(image(folder, case), change)
    rewrite(label(folder, case), change)


def image(folder: Path, case: int) -> Path:
    return folder / "imagesTr" / f"case_{case:03d}_0000.nii.gz"


def label(folder: Path, case: int) -> Path:
    return folder / "labelsTr" / f"case_{case:03d}.nii.gz"


def measure(folder: Path, centre: str = "Oslo", external: bool = False, workers: int = 1) -> CentreSummary:
    return measure_centre(list_cases(folder, centre, external), centre, external, workers)


def issues_of(*folders: Path) -> dict[str, DataIssue]:
    """By centre and kind, such as ``Oslo: empty mask``; centres are called as their datasets."""
    centres = [measure(folder, folder.name.partition("_")[2]) for folder in folders]
    found = find_issues(centres)
    named = {f"{issue.centre}: {issue.kind}": issue for issue in found}
    assert len(named) == len(found)
    return named


@pytest.fixture
def oslo(tmp_path: Path) -> Path:
    return write_boxes(tmp_path, "Dataset201_Oslo", seed=1)


@pytest.fixture
def porto(tmp_path: Path) -> Path:
    return write_boxes(tmp_path, "Dataset202_Porto", seed=2)


# measures ----------------------------------------------------------------------------------------------


def test_measures_are_those_of_the_files(oslo: Path) -> None:
    centre = measure(oslo)
    assert (centre.number, centre.unreadable, centre.unit) == (6, (), "mm³")
    for number, case in enumerate(centre.cases):
        voxels = np.asarray(nibabel.load(image(oslo, number)).dataobj)
        mask = np.asarray(nibabel.load(label(oslo, number)).dataobj)
        assert case.name == f"case_{number:03d}"
        assert case.shape == voxels.shape[::-1]
        assert case.spacing == (3.0, 1.0, 1.0)
        assert case.intensities[0] == pytest.approx(np.percentile(voxels[voxels != 0], (0.5, 50, 99.5)), rel=1e-6)
        assert case.label_voxels == {1: int(mask.sum())}
    np.testing.assert_allclose(centre.volumes("tumour"), 3.0 * centre.voxels("tumour"))
    content = json.loads(json.dumps(centre.as_dict()))
    assert content["shape"] == {"min": [6, 40, 40], "median": [6, 40, 40], "max": [6, 40, 40]}
    assert content["labels"]["tumour"]["volume"]["max"] == centre.volumes("tumour").max()
    assert len(content["cases"]) == 6


def test_background_of_zeros_does_not_count_as_intensity(oslo: Path) -> None:
    rewrite(image(oslo, 0), lambda file: sitk.ConstantPad(file, (40, 40, 0), (40, 40, 0)))
    rewrite(label(oslo, 0), lambda file: sitk.ConstantPad(file, (40, 40, 0), (40, 40, 0)))
    first, second, *_ = measure(oslo).cases
    assert first.shape == (6, 120, 120)
    assert first.intensities[0].median == pytest.approx(second.intensities[0].median, rel=0.05)


def test_several_processes_measure_the_same(oslo: Path) -> None:
    done: list[None] = []
    dataset = list_cases(oslo, "Oslo")
    assert measure_centre(dataset, "Oslo", workers=2, progress=lambda: done.append(None)) == measure(oslo)
    assert len(done) == 6


def test_images_without_spacing_are_measured_in_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset301_Photos"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for case in range(5):
        imsave(folder / "imagesTr" / f"case_{case:03d}_0000.png", rng.integers(1, 255, (20, 30), np.uint8))
        mask = np.zeros((20, 30), np.uint8)
        mask[:4, : 5 + case] = 1
        imsave(folder / "labelsTr" / f"case_{case:03d}.png", mask, check_contrast=False)
    description = {"channel_names": {"0": "US"}, "labels": {"background": 0, "abdomen": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(description))
    centre = measure(folder)
    assert centre.unit == "pixels"
    assert centre.volumes("abdomen").tolist() == [20, 24, 28, 32, 36]
    assert (centre.spacings.size, centre.orientations) == (0, {})
    assert find_issues([centre]) == []


def test_area_of_flat_images_with_spacing_is_in_mm2(oslo: Path) -> None:
    for case in range(6):
        both(oslo, case, lambda file: file[:, :, 2])
    centre = measure(oslo)
    assert centre.unit == "mm²"
    assert centre.spacings.tolist() == [[1.0, 1.0]] * 6
    np.testing.assert_array_equal(centre.volumes("tumour"), centre.voxels("tumour"))


# orientation -------------------------------------------------------------------------------------------


AXES = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
"""In nibabel's right, anterior, superior."""
CODES = ["".join(letters) for order in permutations(("LR", "AP", "SI")) for letters in product(*order)]


@pytest.mark.parametrize("code", CODES)
def test_axes_are_named_as_nibabel_names_them(code: str) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.array([AXES[letter] for letter in code]).T
    assert "".join(nibabel.aff2axcodes(affine)) == code
    assert anatomical_axes(TO_LPS @ affine[:3, :3]) == code
    assert anatomical_axes(direction_of({"nibabel_stuff": {"original_affine": affine}})) == code


@pytest.mark.parametrize(
    ("degrees", "spacing", "plane"),
    [
        (0, (5.0, 1.0, 1.0), "axial"),
        (0, (1.0, 1.0, 5.0), "sagittal"),
        (0, (1.0, 5.0, 1.0), "coronal"),
        (0, (1.0, 1.0, 1.0), "axial"),
        (0, (1.0, 1.005, 1.0), "axial"),
        (20, (5.0, 1.0, 1.0), "axial"),
        (45, (5.0, 1.0, 1.0), "oblique"),
        (70, (5.0, 1.0, 1.0), "coronal"),
    ],
)
def test_slices_are_perpendicular_to_the_largest_spacing(
    degrees: float, spacing: tuple[float, ...], plane: str
) -> None:
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    turned = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    assert slice_plane(turned, spacing) == plane


def test_mixed_orientation_is_warned_of(oslo: Path, porto: Path) -> None:
    for case in (1, 4):
        both(oslo, case, lambda file: sitk.DICOMOrient(file, "PSL"))
    issue = issues_of(oslo, porto)["Oslo: mixed orientation"]
    assert issue.cases == ("case_001", "case_004")
    assert issue.found == "4 axial LPS and 2 axial PSL"


def test_another_slice_plane_than_at_other_centres_is_a_warning(oslo: Path, porto: Path) -> None:
    lund = write_boxes(oslo.parent, "Dataset203_Lund", seed=3)
    direction = (0, 0, 1, 1, 0, 0, 0, 1, 0)  # slices along left-right

    def turn(file: sitk.Image) -> sitk.Image:
        file.SetDirection(direction)
        return file

    for case in range(6):
        both(porto, case, turn)
    found = issues_of(oslo, porto, lund)
    assert set(found) == {"Porto: other orientation"}
    assert found["Porto: other orientation"].found == "slices are sagittal, those of Oslo, Lund axial"


# warnings ----------------------------------------------------------------------------------------------


def test_good_centres_have_no_issues(oslo: Path, porto: Path) -> None:
    assert issues_of(oslo, porto) == {}


@pytest.mark.parametrize("broken", [0, 3])
def test_an_unreadable_file_is_named_and_the_others_are_measured(oslo: Path, broken: int) -> None:
    image(oslo, broken).write_bytes(b"no image")
    label(oslo, 5).unlink()
    centre = measure(oslo)
    assert [case.name for case in centre.unreadable] == [f"case_{broken:03d}", "case_005"]
    assert len(centre.cases) == 4
    (issue,) = find_issues([centre])
    assert (issue.severity, issue.total) == ("bad", 6)
    assert f"{image(oslo, broken)} cannot be read" in issue.found
    assert f"{label(oslo, 5)} is missing" in issue.found


def test_a_centre_without_a_readable_file_is_an_issue(oslo: Path) -> None:
    for case in range(6):
        image(oslo, case).write_bytes(b"")
    (issue,) = find_issues([measure(oslo)])
    assert len(issue.cases) == 6
    assert "none of nnU-Net's readers for .nii.gz can read" in issue.found


def test_a_case_with_nan_cannot_be_used(oslo: Path) -> None:
    for path in [*oslo.glob("*/*.nii.gz")]:  # ITK reads NaN in NIfTI as 0; MetaImage keeps it
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        if path == image(oslo, 2):
            voxels[0, 0, 0] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path).replace(".nii.gz", ".mha"))
    description = json.loads((oslo / "dataset.json").read_text()) | {"file_ending": ".mha"}
    (oslo / "dataset.json").write_text(json.dumps(description))
    (issue,) = find_issues([measure(oslo)])
    assert issue.cases == ("case_002",)
    assert issue.found.endswith("case_002_0000.mha holds NaN or infinity")


def test_too_few_training_cases_for_five_folds_are_told_and_external_ones_are_not(tmp_path: Path) -> None:
    folder = write_boxes(tmp_path, cases=4)
    (issue,) = find_issues([measure(folder)])
    assert (issue.severity, issue.kind) == ("warning", "too few cases")
    assert "folds 0 to 3 hold one out each; in the others the centre trains on all, and is not scored" in issue.found
    assert find_issues([measure(folder, external=True)]) == []
    (issue,) = find_issues([measure(write_boxes(tmp_path / "one", cases=1))])
    assert "cross-validation has none to hold out" in issue.found
    assert "fold=all" in issue.advice


def test_image_and_label_of_other_geometry(oslo: Path) -> None:
    def move(file: sitk.Image) -> sitk.Image:
        file.SetOrigin((9.0, 0.0, 0.0))
        return file

    def stretch(file: sitk.Image) -> sitk.Image:
        file.SetSpacing((1.0, 1.0, 2.5))
        return file

    rewrite(label(oslo, 1), move)
    rewrite(label(oslo, 2), stretch)
    rewrite(label(oslo, 3), lambda file: file[1:])
    found = issues_of(oslo)
    assert found["Oslo: lies elsewhere"].cases == ("case_001",)
    assert found["Oslo: lies elsewhere"].severity == "bad"
    assert "case_001.nii.gz lies elsewhere than case_001_0000.nii.gz" in found["Oslo: lies elsewhere"].found
    assert found["Oslo: label does not fit"].cases == ("case_002", "case_003")
    assert found["Oslo: label does not fit"].severity == "bad"
    assert found["Oslo: label does not fit"].found == "image and label differ in shape and spacing"


def one_voxel(file: sitk.Image) -> sitk.Image:
    file = file * 0
    file[20, 20, 3] = 1
    return file


def test_empty_tiny_and_unknown_labels(oslo: Path) -> None:
    rewrite(label(oslo, 0), lambda file: file * 0)
    rewrite(label(oslo, 1), one_voxel)
    rewrite(label(oslo, 2), lambda file: file * 4)
    found = issues_of(oslo)
    assert found["Oslo: empty mask"].cases == ("case_000",)
    assert found["Oslo: tiny label"].cases == ("case_001",)
    assert found["Oslo: unknown label"].cases == ("case_002",)
    assert found["Oslo: unknown label"].found == "labels hold 4, which dataset.json does not name"
    assert set(found) == {"Oslo: empty mask", "Oslo: tiny label", "Oslo: unknown label"}


def test_a_label_that_is_less_than_a_voxel_at_the_median_spacing_is_tiny(oslo: Path) -> None:
    def shrink(file: sitk.Image) -> sitk.Image:
        file.SetSpacing((0.1, 0.1, 0.4))
        return file

    both(oslo, 0, shrink)  # hundreds of voxels, and fewer than 3 mm³
    (small,) = measure(oslo).cases[:1]
    assert 100 < small.label_voxels[1] < 3 / small.voxel
    assert issues_of(oslo)["Oslo: tiny label"].cases == ("case_000",)


def test_ignored_voxels_are_no_annotation(oslo: Path) -> None:
    description = json.loads((oslo / "dataset.json").read_text())
    description["labels"] = {"background": 0, "tumour": 1, "ignore": 2}
    (oslo / "dataset.json").write_text(json.dumps(description))
    rewrite(label(oslo, 0), lambda file: file * 2)
    found = issues_of(oslo)
    assert set(found) == {"Oslo: empty mask"}


def test_a_label_that_no_case_of_a_centre_has(oslo: Path, porto: Path) -> None:
    for folder in (oslo, porto):
        description = json.loads((folder / "dataset.json").read_text())
        description["labels"]["cyst"] = 2
        (folder / "dataset.json").write_text(json.dumps(description))
    rewrite(label(porto, 3), lambda file: file * 2)
    found = issues_of(oslo, porto)
    assert set(found) == {"Oslo: absent label"}
    assert found["Oslo: absent label"].found == "no case holds cyst"


@pytest.mark.parametrize(("factor", "outlier"), [(1.9, False), (2.1, True), (1 / 1.9, False), (1 / 2.1, True)])
def test_spacing_outliers(oslo: Path, factor: float, outlier: bool) -> None:
    def stretch(file: sitk.Image) -> sitk.Image:
        file.SetSpacing((1.0, 1.0, 3.0 * factor))
        return file

    both(oslo, 4, stretch)
    found = issues_of(oslo)
    assert set(found) == ({"Oslo: spacing outlier"} if outlier else set())
    if outlier:
        assert found["Oslo: spacing outlier"].cases == ("case_004",)


@pytest.mark.parametrize(("gain", "differs"), [(1.0, False), (2.0, False), (40.0, True), (1 / 255, True)])
def test_intensities_that_are_far_from_the_other_centres(oslo: Path, porto: Path, gain: float, differs: bool) -> None:
    lund = write_boxes(oslo.parent, "Dataset203_Lund", seed=3)
    for folder in (oslo, porto, lund):  # ranges that begin at about 0, as those of MR do
        for case in range(6):
            factor = gain if folder == porto else 1.0
            rewrite(image(folder, case), lambda file, factor=factor: (file - 70) * factor)  # type: ignore[misc]
    assert set(issues_of(oslo, porto, lund)) == ({"Porto: intensities"} if differs else set())


# copies ------------------------------------------------------------------------------------------------


def test_copies_are_found_however_they_are_compressed(oslo: Path, porto: Path) -> None:
    (image(oslo, 2)).write_bytes(image(oslo, 1).read_bytes())
    plain = gzip.decompress(image(porto, 5).read_bytes())
    image(oslo, 4).write_bytes(gzip.compress(plain, 1))
    assert image(oslo, 4).read_bytes() != image(porto, 5).read_bytes()
    found = issues_of(oslo, porto)
    assert set(found) == {"Oslo: duplicates", "Oslo: duplicates across"}
    assert found["Oslo: duplicates"].cases == ("case_001", "case_002")
    assert found["Oslo: duplicates across"].cases == ("case_004",)
    assert found["Oslo: duplicates across"].found == "Porto holds the same image: case_004 = Porto's case_005"


def test_digests_are_sha256_of_type_shape_and_voxels(oslo: Path) -> None:
    dataset = list_cases(oslo, "Oslo")
    voxels = np.asarray(nibabel.load(image(oslo, 0)).dataobj).T.astype("<f4")[None]
    expected = hashlib.sha256(f"<f4{voxels.shape}".encode() + voxels.tobytes()).hexdigest()
    digests = image_digests(dataset, "Oslo")
    assert digests["case_000"] == expected == measure(oslo).cases[0].digest
    assert len(set(digests.values())) == 6
    flat = voxels.reshape(1, 1, -1, 40)
    assert content_digest([flat]) != content_digest([voxels])
    assert content_digest([voxels.astype(">f4")]) == content_digest([voxels])
