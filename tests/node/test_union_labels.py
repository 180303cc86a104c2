"""A node that has annotated some of the federation's structures: what it plans, scores and tells."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from torch import nn

from fednnunet.config.task import TaskConfig
from fednnunet.errors import ConfigError, DataError, ProtocolError
from fednnunet.exchange.messages import FingerprintRequest, PlanRequest
from fednnunet.node.describe import NodeDataset
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from fednnunet.training import trainer as trainers
from tests.conftest import write_boxes
from tests.node import test_worker
from tests.support import image_cases
from tests.support.raw_datasets import change_description

settings = test_worker.settings  # a fixture

UNION = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3}
HEADS = [f"decoder.seg_layers.{number}.{part}" for number in range(3) for part in ("weight", "bias")]


@pytest.fixture(autouse=True)
def _nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr("fednnunet.fingerprint.extract.MAX_FOREGROUND_VOXELS", 6e4)  # sampled in no time


def with_task(settings: NodeSettings, **task: Any) -> NodeSettings:
    return replace(settings, config=settings.config.model_copy(update={"task": TaskConfig(**task)}))


def staged(settings: NodeSettings, name: str = "Dataset101_Boxes") -> dict[str, Any]:
    return json.loads((settings.folder / "nnUNet_raw" / name / "dataset.json").read_text())


def planned(settings: NodeSettings, labels: dict[str, int] | None) -> tuple[NodeStages, Any]:
    stages = NodeStages(with_task(settings, labels="union"))
    stages.describe(FingerprintRequest())
    return stages, stages.plan(PlanRequest(fingerprint=None, labels=labels))


def test_a_label_is_renamed_where_the_dataset_is_read(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    renamed = with_task(settings, rename_labels={"Oslo": {"tumour": "lesion"}})
    dataset = NodeDataset(renamed)
    assert dataset.describe(FingerprintRequest()).labels == {"background": 0, "lesion": 1}
    folder = tmp_path / "raw" / "Dataset101_Boxes"
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "tumour": 1}
    with pytest.raises(DataError, match=r"^centre Oslo: task\.rename_labels\.Oslo\.tumor: labels in .*tumour; rename"):
        NodeDataset(with_task(settings, rename_labels={"Oslo": {"tumor": "lesion"}}))


def test_labels_of_others_are_refused_where_the_run_unites_none(settings: NodeSettings, tmp_path: Path) -> None:
    """Its loss would take what it has not annotated for background."""
    write_boxes(tmp_path / "raw")
    stages = NodeStages(settings)
    stages.describe(FingerprintRequest())
    with pytest.raises(ProtocolError, match=r"names labels of all nodes, but the run has task\.labels=same"):
        stages.plan(PlanRequest(fingerprint=None, labels=UNION))


def test_a_node_plans_with_all_labels_and_tells_which_layers_end_in_them(
    settings: NodeSettings, tmp_path: Path
) -> None:
    write_boxes(tmp_path / "raw")
    _, own = planned(settings, None)
    stages, reply = planned(settings, UNION)
    assert own.heads == []
    assert reply.heads == HEADS
    assert [reply.layers[name][0] for name in HEADS] == [4] * len(HEADS)
    assert {name for name, shape in own.layers.items() if shape != reply.layers[name]} == set(HEADS)
    assert own.plans == reply.plans
    assert staged(settings)["labels"] == UNION
    assert staged(settings)["annotated"] == ["tumour"]
    assert stages.dataset.annotated == {"Oslo": ["tumour"]}


def test_a_label_map_that_was_put_right_stays_so_in_other_values(settings: NodeSettings, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path / "raw")
    sound = image_cases.read(image_cases.label_of(folder))
    image_cases.mirrored_label(folder)
    stages, _ = planned(settings, UNION)
    label = stages.dataset.cases()[2].case.label
    assert np.array_equal(image_cases.read(label), 3 * sound)
    shutil.rmtree(label.parent)
    assert stages.has_lost_cache()
    stages.read_dataset()
    assert not stages.has_lost_cache()
    assert np.array_equal(image_cases.read(label), 3 * sound)


def test_a_node_that_describes_itself_again_keeps_the_labels_and_names_its_own(
    settings: NodeSettings, tmp_path: Path
) -> None:
    write_boxes(tmp_path / "raw")
    stages, _ = planned(settings, UNION)
    before = stages.dataset.raw
    reply = stages.describe(FingerprintRequest())
    assert reply.labels == {"background": 0, "tumour": 1}
    assert stages.dataset.raw == before
    assert staged(settings)["labels"] == UNION
    stages.plan(PlanRequest(fingerprint=None))
    assert staged(settings)["labels"] == {"background": 0, "tumour": 1}


def test_what_was_computed_from_images_alone_is_not_computed_again(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_boxes(tmp_path / "raw")
    dataset = NodeDataset(settings)
    fingerprint = dataset.fingerprint()
    dataset.adopt_labels(UNION)
    monkeypatch.setattr("fednnunet.node.describe.extract_fingerprint", lambda *_: pytest.fail("computed again"))
    assert dataset.fingerprint() == fingerprint


def test_a_node_with_all_labels_works_as_by_itself(settings: NodeSettings, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path / "raw")
    change_description(folder, labels=UNION)
    stages, own = planned(settings, None)
    raw, by_itself = stages.dataset.raw, staged(settings)
    stages, reply = planned(settings, UNION)
    assert reply.model_copy(update={"heads": []}) == own
    assert reply.heads == HEADS
    assert stages.dataset.raw == raw
    assert staged(settings) == by_itself
    assert all(case.label.parent == folder / "labelsTr" for case in stages.dataset.raw.cases)


def test_a_network_without_layers_of_classes_is_refused(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_boxes(tmp_path / "raw")
    built = trainers.build_network
    monkeypatch.setattr(trainers, "build_network", lambda *arguments: built(*arguments[:4]))
    with pytest.raises(ConfigError, match=r"^task\.labels=union: no layer of nnUNetTrainer's network depends"):
        planned(settings, UNION)

    class Turned(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.head = nn.Linear(classes, 5)

    monkeypatch.setattr(trainers, "build_network", lambda *arguments: Turned(4 + (arguments[4:] or [0])[0]))
    with pytest.raises(ConfigError, match=r"layer head\.weight of nnUNetTrainer's network .* first axis are not these"):
        planned(settings, UNION)


def test_pooled_centres_are_one_dataset_of_the_union(settings: NodeSettings, tmp_path: Path) -> None:
    folders = {name: write_boxes(tmp_path / name, cases=5) for name in ("Oslo", "Porto")}
    change_description(folders["Porto"], labels={"background": 0, "liver": 1})
    pooled = replace(settings, name="centralized", datasets=folders)
    with pytest.raises(DataError, match=r"centres Oslo and Porto disagree on labels .*task\.labels=union"):
        NodeDataset(pooled)
    dataset = NodeDataset(with_task(pooled, labels="union"))
    assert dataset.describe(FingerprintRequest()).labels == {"background": 0, "liver": 1, "tumour": 2}
    assert dataset.annotated == {"Oslo": ["tumour"], "Porto": ["liver"]}
    held = {
        centre: {
            int(value)
            for case in of_centre.cases
            for value in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))))
        }
        for centre, of_centre in dataset.centres.items()
    }
    assert held == {"Oslo": {0, 2}, "Porto": {0, 1}}
    assert [case.label for case in dataset.raw.cases] == [held_out.case.label for held_out in dataset.cases()]
    assert set(dataset.raw.dataset_json["annotated"]) == {"Oslo", "Porto"}
