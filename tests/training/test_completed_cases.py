"""Label maps that are completed where they are read, and the files of what completes them."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from fednnunet.training.checkpoint import KEPT_ROUNDS
from fednnunet.training.completed_cases import CompletedLabels, PseudoLabelFiles, complete_cases

DRAWN = np.arange(-1, 59, dtype=np.int8).reshape(1, 3, 4, 5) % 7 - 1
"""-1 outside of the image, 0 where nothing is drawn."""
PSEUDO = np.full(DRAWN.shape, 9, np.uint8)


class Cases:
    """A dataset of one label map for all cases."""

    def load_case(self, identifier: str) -> tuple[Any, ...]:
        return identifier, blosc2.asarray(DRAWN), None, {}


@pytest.fixture
def files(tmp_path: Path) -> PseudoLabelFiles:
    return PseudoLabelFiles(tmp_path / "pseudo_labels")


def newest(files: PseudoLabelFiles, case: str = "a") -> int | None:
    found = files.newest(case)
    return None if found is None else int(found[:].max())


@pytest.mark.parametrize("box", [[[0, 3], [0, 4], [0, 5]], [[1, 2], [2, 4], [1, 3]], [[-2, 2], [1, 9], [-1, 7]]])
def test_a_patch_of_a_completed_map_is_that_of_a_map_which_was_completed_before(box: list[list[int]]) -> None:
    lazy = CompletedLabels.of(blosc2.asarray(DRAWN), blosc2.asarray(PSEUDO))
    whole = np.where(DRAWN == 0, PSEUDO, DRAWN)
    assert lazy.shape == whole.shape
    patches = [crop_and_pad_nd(one, box, -1, cast_cropped_to=np.int16) for one in (lazy, whole)]
    assert patches[0].dtype == np.int16
    assert np.array_equal(*patches)
    assert {-1, 1, 9} <= set(whole.flat), "only what is 0 has been completed"


def test_the_newest_map_is_read_also_where_another_process_has_written_it(files: PseudoLabelFiles) -> None:
    reader = PseudoLabelFiles(files.folder)
    assert newest(reader) is None
    for epoch in (2, 10):
        files.write("a", epoch, PSEUDO + epoch)
        assert newest(files) == newest(reader) == 9 + epoch
    assert newest(reader, "b") is None


def test_a_case_has_a_map_for_each_checkpoint_that_is_kept(files: PseudoLabelFiles) -> None:
    for epoch in range(KEPT_ROUNDS + 2):
        files.write("a", epoch, PSEUDO + epoch)
    assert len(list(files.folder.rglob("*.b2nd"))) == KEPT_ROUNDS
    files.write("b", KEPT_ROUNDS, PSEUDO)
    assert files.remove_from(KEPT_ROUNDS) == KEPT_ROUNDS - 1
    assert (newest(files), newest(files, "b")) == (9 + KEPT_ROUNDS - 1, None)
    assert files.remove_from(0) is None
    files.write("a", 0, PSEUDO)
    files.remove()
    assert newest(files) is None
    assert not files.folder.exists()


def test_a_damaged_map_is_none(files: PseudoLabelFiles, caplog: pytest.LogCaptureFixture) -> None:
    files.write("a", 2, PSEUDO)
    (path,) = files.folder.rglob("*.b2nd")
    path.write_bytes(path.read_bytes()[:-20])
    assert newest(files) is None
    assert "000002.b2nd is damaged" in caplog.text
    files.write("a", 3, PSEUDO)
    assert newest(files) == 9


def test_cases_of_a_dataset_are_completed_in_the_processes_of_a_loader_too(files: PseudoLabelFiles) -> None:
    dataset: Any = Cases()
    complete_cases(dataset, files, 8)
    elsewhere = pickle.loads(pickle.dumps(SimpleNamespace(dataset=dataset))).dataset
    for one in (dataset, elsewhere):
        assert np.array_equal(one.load_case("a")[1][:], np.where(DRAWN == 0, 8, DRAWN))
    files.write("a", 3, PSEUDO)
    for one in (dataset, elsewhere):
        case, drawn, previous, properties = one.load_case("a")
        assert (case, previous, properties) == ("a", None, {})
        assert np.array_equal(drawn[:], np.where(DRAWN == 0, 9, DRAWN))
        assert np.array_equal(one.load_case("b")[1][:], np.where(DRAWN == 0, 8, DRAWN))
