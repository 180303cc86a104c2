"""Files with damaged bytes are read or refused in one line; nothing else happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fednnunet.dicom.annotations import draw_annotation, open_annotation
from fednnunet.dicom.headers import read_headers
from fednnunet.dicom.segmentation import write_segmentation
from fednnunet.dicom.series import Series, look_into, read_volume
from fednnunet.errors import DataError
from tests.support.dicom_series import find_series, phantom_labels, phantom_voxels, write_series
from tests.support.structure_sets import write_structures

TIMES = 15


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """A file whose first letters are whole; a few bytes are changed, and sometimes its end is cut off."""
    damaged = bytearray(content)
    for place in random.integers(132, len(damaged), size=random.integers(1, 4)):
        damaged[place] = random.integers(256)
    return bytes(damaged[: random.integers(132, len(damaged))] if random.random() < 0.1 else damaged)


def lines_of_refusal(read: Callable[[], object]) -> int:
    """Lines of the error; 0 where the file was read."""
    try:
        read()
    except DataError as error:
        return len(str(error).splitlines())
    return 0


@pytest.fixture
def series(tmp_path: Path) -> Series:
    write_series(tmp_path / "series", phantom_voxels())
    return find_series(tmp_path / "series")[0]


def test_damaged_slices(series: Series) -> None:
    path, random = series.files[1], np.random.default_rng(1)
    content, lines = path.read_bytes(), []
    for _ in range(TIMES):
        path.write_bytes(damage(content, random))
        lines.append(lines_of_refusal(lambda: [read_volume(one) for one in find_series(path.parent)]))
    assert set(lines) == {0, 1}


@pytest.mark.parametrize("kind", ["seg", "rt"])
def test_damaged_annotations(tmp_path: Path, series: Series, kind: str) -> None:
    path, random = tmp_path / "labels" / f"{kind}.dcm", np.random.default_rng(2)
    path.parent.mkdir()
    if kind == "seg":
        write_segmentation(path, phantom_labels(), series, {"liver": 1, "mass": 2})
    else:
        write_structures(path, series.files, {"liver": [(1, [(1, 1), (4, 1), (4, 3)])]})
    content, lines = path.read_bytes(), []

    def read() -> None:
        for header in read_headers(path.parent):
            draw_annotation(open_annotation(header), series, {1: 1})

    for _ in range(TIMES):
        path.write_bytes(damage(content, random))
        lines.append(lines_of_refusal(read))
    assert set(lines) == {0, 1}


def test_a_slice_that_was_cut_off_anywhere_is_never_passed_over(tmp_path: Path) -> None:
    """pydicom reads what is left of a header; a volume without its last slice would look whole."""
    *_, last = write_series(tmp_path, np.zeros((4, 6, 5), np.int16))
    whole = last.read_bytes()
    for length in range(0, len(whole), 16):
        last.write_bytes(whole[:length])
        with pytest.raises(DataError, match=last.name):  # at once, as a refusal, or when voxels are read
            read_whole(tmp_path)


def read_whole(folder: Path) -> None:
    content = look_into(folder)
    for refusal in content.refusals:
        raise DataError(refusal.reason)
    assert [len(series.files) for series in content.series] == [4]
    read_volume(content.series[0])
