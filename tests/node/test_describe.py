"""A node computes on unusual images as on the sound ones that they stand for, and tells the server how many."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import DataNote, NoteKind
from fednnunet.exchange.messages import FingerprintReply, FingerprintRequest
from fednnunet.node.describe import NodeDataset
from fednnunet.node.resource_errors import CacheLostError
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from tests.conftest import write_boxes
from tests.node import test_worker
from tests.support import image_cases

settings = test_worker.settings  # a fixture


@pytest.fixture(autouse=True)
def _nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr("fednnunet.fingerprint.extract.MAX_FOREGROUND_VOXELS", 6e4)  # sampled in no time


def described(settings: NodeSettings) -> tuple[NodeDataset, FingerprintReply]:
    dataset = NodeDataset(settings)
    return dataset, dataset.describe(FingerprintRequest(content="statistics"))


def sound(tmp_path: Path, settings: NodeSettings, ending: str) -> Mapping[str, Any]:
    """Fingerprint of the same dataset before it was changed."""
    folder = write_boxes(tmp_path / "sound")
    image_cases.rename(folder, ending)
    return described(replace(settings, datasets={"Oslo": folder}))[0].fingerprint()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    ("change", "note"),
    [
        (image_cases.mirrored_label, DataNote(kind=NoteKind.LABEL_REORIENTED, cases=1)),
        (image_cases.turned_label, DataNote(kind=NoteKind.LABEL_REORIENTED, cases=1)),
        (image_cases.label_a_hair_below_one, DataNote(kind=NoteKind.LABEL_ROUNDED, cases=1)),
        (image_cases.micrometres, DataNote(kind=NoteKind.UNIT, cases=6)),
    ],
)
def test_the_fingerprint_is_that_of_the_sound_dataset(
    settings: NodeSettings, tmp_path: Path, ending: str, change: Callable[[Path], None], note: DataNote
) -> None:
    expected = sound(tmp_path, settings, ending)
    folder = write_boxes(tmp_path / "raw")
    image_cases.rename(folder, ending)
    change(folder)
    dataset, reply = described(settings)
    assert reply.data_notes == [note]
    assert dataset.fingerprint() == expected
    staged = json.loads((tmp_path / "nnUNet_raw" / "Dataset101_Boxes" / "dataset.json").read_text())
    assert staged["dataset"]["case_002"]["label"] == str(dataset.cases()[2].case.label)
    assert described(settings)[1].data_notes == [note]  # from the cache


@pytest.mark.parametrize("external", [False, True])
def test_a_file_that_was_cut_off_is_named_before_anything_is_computed(
    settings: NodeSettings, tmp_path: Path, external: bool
) -> None:
    image_cases.cut_image(write_boxes(tmp_path / "raw"))
    with pytest.raises(DataError, match=r"^centre Oslo: .*case_002_0000.nii.gz is cut off") as stopped:
        NodeDataset(replace(settings, external=external))
    assert stopped.value.public == "a file of its images and labels is cut off; its own terminal and log name it"


def test_another_machine_is_told_the_kind_of_problem_and_no_file(settings: NodeSettings, tmp_path: Path) -> None:
    image_cases.label_of_fractions(write_boxes(tmp_path / "raw"))
    with pytest.raises(DataError, match=r"case_002.nii.gz holds value 0.9523, which is not an integer") as stopped:
        NodeDataset(settings)
    assert stopped.value.public == "a case cannot be trained on (no integer); its own terminal and log name it"


def test_notes_of_pooled_centres_are_added(settings: NodeSettings, tmp_path: Path) -> None:
    folders = {name: write_boxes(tmp_path / name) for name in ("Oslo", "Porto")}
    for folder in folders.values():
        image_cases.not_finite(folder)
    dataset, reply = described(replace(settings, name="centralized", datasets=folders))
    assert reply.data_notes == [DataNote(kind=NoteKind.NOT_FINITE, cases=2, voxels=160)]
    image_cases.mirrored_label(folders["Porto"])
    dataset = NodeDataset(replace(settings, name="centralized", datasets=folders))
    assert str(dataset.cases()[8].case.label).startswith(str(settings.config.paths.cache.resolve()))
    assert [case.label for case in dataset.raw.cases] == [held_out.case.label for held_out in dataset.cases()]


def test_headers_are_ignored_where_the_node_says_so(settings: NodeSettings, tmp_path: Path) -> None:
    image_cases.mirrored_label(write_boxes(tmp_path / "raw"))
    dataset, reply = described(replace(settings, image_headers="ignore"))
    assert reply.data_notes == [DataNote(kind=NoteKind.HEADERS_IGNORED, cases=1)]
    assert dataset.cases()[2].case.label == tmp_path / "raw" / "Dataset101_Boxes" / "labelsTr" / "case_002.nii.gz"


def test_corrected_files_that_were_removed_are_written_again(settings: NodeSettings, tmp_path: Path) -> None:
    image_cases.mirrored_label(write_boxes(tmp_path / "raw"))
    stages = NodeStages(settings)
    stages.read_dataset()
    assert not stages.has_lost_cache()
    shutil.rmtree(settings.config.paths.cache)
    assert stages.has_lost_cache()
    assert isinstance(stages.cause_of(OSError("no such file")), CacheLostError)
    stages.read_dataset()
    assert not stages.has_lost_cache()
