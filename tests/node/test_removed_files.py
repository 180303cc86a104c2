"""Files that are removed in the middle of a run: what was made of images is made again, what is missing is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fednnunet.datasets.raw import Case
from fednnunet.errors import ConfigError, DataError
from fednnunet.exchange.messages import Kind
from fednnunet.node.describe import NodeDataset
from fednnunet.node.error_replies import failure_of
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from fednnunet.preprocessing import missing_cases

NAMES = ("case_1", "case_2")
CRASH = RuntimeError("One or more background workers are no longer alive.")


@pytest.fixture
def stages(tmp_path: Path) -> NodeStages:
    """Of a node with two cases that are preprocessed."""
    raw, cache = tmp_path / "raw", tmp_path / "cache"
    for folder, endings in ((raw, ("_0000.nii.gz", ".nii.gz")), (cache, (".b2nd", "_seg.b2nd", ".pkl"))):
        folder.mkdir()
        for name in NAMES:
            for ending in endings:
                (folder / f"{name}{ending}").touch()
    cases = [Case(name, (raw / f"{name}_0000.nii.gz",), raw / f"{name}.nii.gz") for name in NAMES]
    dataset: Any = object.__new__(NodeDataset)
    dataset.raw = SimpleNamespace(cases=cases)
    dataset.centres = dataset._originals = {"Oslo": dataset.raw}
    stages: Any = object.__new__(NodeStages)
    stages._dataset, stages.trainer = dataset, SimpleNamespace(preprocessed_dataset_folder=str(cache))
    return stages


def settings(*, same_machine: bool) -> NodeSettings:
    config: Any = None
    return NodeSettings("Oslo", Path("/srv/oslo"), {}, False, config, 1, same_machine)


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ([], []),
        (["case_2.b2nd"], ["case_2"]),
        (["case_1.pkl"], ["case_1"]),
        (["case_1.b2nd", "case_1_seg.b2nd", "case_1.pkl"], ["case_1"]),
    ],
)
def test_a_case_is_preprocessed_if_its_image_and_properties_are_there(
    stages: NodeStages, tmp_path: Path, removed: list[str], expected: list[str]
) -> None:
    for name in removed:
        (tmp_path / "cache" / name).unlink()
    assert missing_cases(tmp_path / "cache", NAMES) == expected
    assert missing_cases(tmp_path / "nowhere", NAMES) == list(NAMES)
    assert stages.has_lost_cache() == bool(expected)


def test_what_fails_without_its_cache_is_asked_for_again(stages: NodeStages, tmp_path: Path) -> None:
    assert stages.cause_of(CRASH) is CRASH
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    failure = failure_of(stages.cause_of(CRASH), Kind.TRAIN, settings(same_machine=False))
    assert failure.error == "unavailable"
    assert failure.reason == (
        "node Oslo: preprocessed images were removed from its cache; they are made again when the run goes on"
    )


def test_images_that_are_gone_are_named_at_the_node_and_counted_at_the_server(
    stages: NodeStages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "raw" / "case_2.nii.gz"
    gone.unlink()
    cause = stages.cause_of(CRASH)
    assert isinstance(cause, DataError)
    failure = failure_of(cause, Kind.EVALUATE, settings(same_machine=False))
    count = "1 of 4 of its files of images and labels are not there any more; its own terminal names the first"
    assert (failure.error, failure.reason) == ("data", f"node Oslo: {count}")
    assert f"scoring failed: {gone} is not there any more" in caplog.text
    here = failure_of(cause, Kind.EVALUATE, settings(same_machine=True))
    assert (
        here.reason
        == f"node Oslo: {gone} is not there any more (1 of 4 files of images and labels); put them back, and go on"
    )


def test_an_error_with_a_cause_of_its_own_stays_what_it_is(stages: NodeStages, tmp_path: Path) -> None:
    (tmp_path / "raw" / "case_2.nii.gz").unlink()
    error = ConfigError("no such layer")
    assert stages.cause_of(error) is error
