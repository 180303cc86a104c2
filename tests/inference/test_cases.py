"""Which files are cases of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednnunet.errors import DataError
from fednnunet.inference.cases import ModelInput, find_cases

TWO = ModelInput(("T1", "T2"), (".nii.gz", ".nrrd"), frozenset())


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_a_folder_holds_cases_whatever_else_lies_in_it(tmp_path: Path) -> None:
    b0, a1, a0, b1, *_ = touch(
        tmp_path,
        "b_0000.nii.gz",
        "a_0001.nrrd",
        "a_0000.nrrd",
        "b_0001.nii.gz",
        "b.nii.gz",
        "x_0000.txt",
        "c_001.nii.gz",
    )
    cases = find_cases([tmp_path], TWO)
    assert [(case.name, case.images, case.problem) for case in cases] == [
        ("a", (a0, a1), None),
        ("b", (b0, b1), None),
    ]


def test_of_one_image_the_other_channels_are_beside_it(tmp_path: Path) -> None:
    files = touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "a_b_0000.nii.gz", "b_0000.nii.gz")
    for inputs in (files[:1], files[1:2], files[:2]):
        (case,) = find_cases(inputs, TWO)
        assert (case.name, case.images) == ("a", tuple(files[:2]))
    with pytest.raises(DataError, match=r"a_0000.nii.gz, .*b_0000.nii.gz are of several cases|and b_0000.nii.gz are"):
        find_cases([files[0], files[3]], TWO)


def test_a_colour_image_holds_all_channels(tmp_path: Path) -> None:
    (image,) = touch(tmp_path, "a_0000.png")
    (case,) = find_cases([tmp_path], ModelInput(("R", "G", "B"), (".png",), frozenset()))
    assert (case.images, case.missing) == ((image,), [])


def test_a_channel_may_lack_only_where_the_model_has_learnt_it(tmp_path: Path) -> None:
    a0, b1, *_ = touch(tmp_path, "a_0000.nii.gz", "b_0001.nii.gz", "c_0000.nii.gz", "c_0001.nii.gz")
    a, b, c = find_cases([tmp_path], ModelInput(TWO.channels, TWO.endings, frozenset({"T2"})))
    assert (a.images, a.missing, a.problem) == ((a0, None), [1], None)
    assert (b.images, c.problem) == ((None, b1), None)
    assert b.problem == "case b lacks b_0000.nii.gz (T1), which the model was not trained to do without"
    for path in tmp_path.glob("[ac]*"):
        path.unlink()
    with pytest.raises(DataError, match=r"^case b lacks b_0000.nii.gz"):
        find_cases([tmp_path], TWO)
