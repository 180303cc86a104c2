"""Images and label maps that nnU-Net would stop at are named before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.io import imsave

from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import DataNote, NoteKind
from tests.support.raw_datasets import change_description, rewrite


@pytest.mark.parametrize(
    ("file", "change", "spacing", "problem"),
    [
        (
            "imagesTr/case_001_0000.nii.gz",
            lambda a: a[:-1],
            None,
            "shape 5 x 40 x 40, its label .* 6 x 40 x 40",
        ),
        ("imagesTr/case_001_0000.nii.gz", lambda a: a, (1.0, 1.0, 2.0), "spacing 2 x 1 x 1 mm"),
        ("labelsTr/case_001.nii.gz", lambda a: a * 3, None, "value 3, which labels .* does not name"),
    ],
)
def test_images_that_do_not_fit_are_named(
    make_dataset: Callable[..., Path],
    file: str,
    change: Callable[[np.ndarray], np.ndarray],
    spacing: tuple[float, ...] | None,
    problem: str,
) -> None:
    folder = make_dataset()
    rewrite(folder / file, change, spacing)
    with pytest.raises(DataError, match=f"centre Oslo: .*case_001.*{problem}"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_nan_in_an_image_is_named(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()  # ITK reads NaN in NIfTI as 0; MetaImage keeps it
    for path in [*folder.glob("*/*.nii.gz")]:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        if path.name == "case_001_0000.nii.gz":
            values[0, 0, 0] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path).replace(".nii.gz", ".mha"))
    change_description(folder, file_ending=".mha")
    with pytest.raises(DataError, match=r"centre Oslo: .*case_001_0000.mha holds NaN"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")


@pytest.mark.parametrize("file", ["imagesTr/case_000_0000.nii.gz", "imagesTr/case_004_0000.nii.gz"])
def test_unreadable_image_is_named(
    make_dataset: Callable[..., Path], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset()
    (folder / file).write_bytes(b"not an image")
    with pytest.raises(DataError, match=rf"centre Oslo: .*{file} cannot be read"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")
    assert "Traceback" not in capsys.readouterr().err


def test_a_label_that_lies_elsewhere_by_its_header_stops_unless_headers_are_ignored(
    make_dataset: Callable[..., Path],
) -> None:
    folder = make_dataset()
    path = str(folder / "labelsTr" / "case_002.nii.gz")
    label = sitk.ReadImage(path)
    label.SetOrigin((5.0, 0.0, 0.0))
    sitk.WriteImage(label, path)
    dataset = read_dataset(folder, "Oslo")
    elsewhere = (
        r"centre Oslo: .*case_002.nii.gz lies elsewhere than case_002_0000.nii.gz by their headers: "
        r"origin \(5, 0, 0\) and \(0, 0, 0\), 5 voxels apart; correct the header, or set image_headers to ignore"
    )
    with pytest.raises(DataError, match=elsewhere):
        check_images(dataset, "Oslo")
    ignoring = check_images(dataset, "Oslo", image_headers="ignore")
    assert (ignoring.dataset, ignoring.notes) == (dataset, (DataNote(kind=NoteKind.HEADERS_IGNORED, cases=1),))
    assert "the first: case_002" in str(ignoring)


def test_progress_counts_cases(make_dataset: Callable[..., Path]) -> None:
    done: list[int] = []
    check_images(read_dataset(make_dataset(), "A"), "A", progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]


def write_pngs(folder: Path, shape: tuple[int, ...]) -> None:
    for path in [*folder.glob("*/*.nii.gz")]:
        is_label = path.parent.name == "labelsTr"
        imsave(
            path.with_name(path.name.replace(".nii.gz", ".png")),
            np.zeros(shape[:2] if is_label else shape, dtype=np.uint8),
            check_contrast=False,
        )
        path.unlink()


def test_one_rgb_file_holds_three_channels(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    write_pngs(folder, (20, 24, 3))
    change_description(folder, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})
    dataset = read_dataset(folder, "A")
    assert [len(case.images) for case in dataset.cases] == [1] * 6
    check_images(dataset, "A")


def test_channels_missing_in_a_file_are_named(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    write_pngs(folder, (20, 24))
    change_description(folder, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})
    with pytest.raises(DataError, match=r"case_000_0000.png has 1 channels, channel_names in dataset.json 3"):
        check_images(read_dataset(folder, "Oslo"), "Oslo")
