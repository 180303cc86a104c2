"""A node that has acquired some of the federation's channels: what it plans, tells and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import FingerprintRequest, PlanRequest
from fednnunet.node.describe import NodeDataset
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from tests.conftest import write_boxes
from tests.node import test_worker
from tests.node.test_union_labels import staged, with_task
from tests.support.raw_datasets import change_description

settings = test_worker.settings  # a fixture

CHANNELS = ["ADC", "MRI", "T2"]
INTENSITIES = "foreground_intensity_properties_per_channel"


@pytest.fixture(autouse=True)
def _nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr("fednnunet.fingerprint.extract.MAX_FOREGROUND_VOXELS", 6e4)  # sampled in no time


def planned(settings: NodeSettings, channels: list[str] | None, **more: Any) -> tuple[NodeStages, Any]:
    stages = NodeStages(with_task(settings, channels="union", **({"labels": "union"} if more else {})))
    stages.describe(FingerprintRequest())
    return stages, stages.plan(PlanRequest(fingerprint=None, channels=channels, **more))


def test_a_node_plans_for_all_channels_from_its_own_fingerprint(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    stages, own = planned(settings, None)
    fingerprint = stages.dataset.fingerprint()
    stages, reply = planned(settings, CHANNELS)
    (first,) = (name for name, shape in own.layers.items() if shape != reply.layers[name])
    assert (own.layers[first][1], reply.layers[first][1]) == (1, 3)
    assert staged(settings)["channel_names"] == {"0": "ADC", "1": "MRI", "2": "T2"}
    assert staged(settings)["acquired"] == ["MRI"]
    assert reply.plans[INTENSITIES] == {"0": {}, "1": fingerprint[INTENSITIES]["0"], "2": {}}
    schemes = reply.plans["configurations"]["2d"]["normalization_schemes"]
    assert schemes == ["ZScoreNormalization"] * 3


def test_a_node_plans_for_all_channels_from_the_shared_fingerprint(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    stages, by_itself = planned(settings, CHANNELS)
    fingerprint = stages.dataset.fingerprint()
    shared = {**fingerprint, INTENSITIES: dict.fromkeys("012", fingerprint[INTENSITIES]["1"])}
    cases = len(stages.dataset.cases())
    reply = stages.plan(PlanRequest(fingerprint=shared, num_training=cases, channels=CHANNELS))
    assert reply.layers == by_itself.layers
    assert reply.plans == {**by_itself.plans, INTENSITIES: shared[INTENSITIES]}
    assert staged(settings)["acquired"] == ["MRI"]


def test_a_node_that_describes_itself_again_keeps_the_channels_and_names_its_own(
    settings: NodeSettings, tmp_path: Path
) -> None:
    write_boxes(tmp_path / "raw")
    stages, _ = planned(settings, CHANNELS)
    before = stages.dataset.raw
    reply = stages.describe(FingerprintRequest(content="statistics"))
    assert reply.channel_names == {"0": "MRI"}
    assert stages.dataset.raw == before
    assert [len(case.images) for case in before.cases] == [3] * 6
    stages.plan(PlanRequest(fingerprint=None))
    assert staged(settings)["channel_names"] == {"0": "MRI"}


def test_what_is_computed_from_own_images_is_cached_as_by_itself(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    uniting = with_task(settings, channels="union")
    dataset = NodeDataset(uniting)
    dataset.adopt_channels(CHANNELS)
    assert set(dataset.fingerprint()[INTENSITIES]) == {"0", "1", "2"}
    ranges = dataset.describe(FingerprintRequest(content="ranges")).intensity_ranges
    alone = NodeDataset(uniting)
    assert set(alone.fingerprint()[INTENSITIES]) == {"0"}
    assert alone.describe(FingerprintRequest(content="ranges")).intensity_ranges == ranges
    assert set(ranges or {}) == {"0"}


def test_a_node_that_lost_its_zeros_says_so(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    stages, _ = planned(settings, CHANNELS)
    assert not stages.has_lost_cache()
    stages.dataset.raw.cases[0].images[0].unlink()
    assert stages.has_lost_cache()
    stages.read_dataset()
    assert not stages.has_lost_cache()


def test_labels_and_channels_are_united_together(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    labels = {"background": 0, "liver": 1, "tumour": 2}
    stages, reply = planned(settings, CHANNELS, labels=labels)
    assert (staged(settings)["annotated"], staged(settings)["acquired"]) == (["tumour"], ["MRI"])
    assert reply.heads
    stages.plan(PlanRequest(fingerprint=None, channels=CHANNELS))
    assert staged(settings)["labels"] == {"background": 0, "tumour": 1}
    assert staged(settings)["acquired"] == ["MRI"]


def test_a_node_with_all_channels_works_as_by_itself(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    stages, own = planned(settings, None)
    raw = stages.dataset.raw
    stages.dataset.adopt_channels(["MRI"])
    assert stages.dataset.raw == raw
    assert stages.plan(PlanRequest(fingerprint=None)) == own


def test_what_cannot_be_united_is_refused(settings: NodeSettings, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path / "raw")
    with pytest.raises(ConfigError, match=r"^task\.channels=union: channel CT is not among these images"):
        planned(settings, ["CT", "MRI"])
    stages = NodeStages(settings)
    stages.describe(FingerprintRequest())
    with pytest.raises(ProtocolError, match=r"names channels of all nodes, but the run has task\.channels=same"):
        stages.plan(PlanRequest(fingerprint=None, channels=CHANNELS))
    change_description(folder, channel_names={"0": "DWI"})
    with pytest.raises(ProtocolError, match="the server's channels lack DWI, which centre Oslo has"):
        planned(settings, CHANNELS)
    with pytest.raises(ValidationError, match="one is there twice"):
        PlanRequest(fingerprint=None, channels=["T1", "T1"])
    with pytest.raises(ValidationError, match="one is not printable"):
        PlanRequest(fingerprint=None, channels=["T1", "T2\n"])
