"""Trainers of nodes that have annotated some of the labels: what they learn, their pseudo-Dice, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.config.task import TaskConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.errors import ConfigError, DataError
from fednnunet.training import trainer as trainer_module
from fednnunet.training.module import NNUNetModule
from fednnunet.training.partial_labels import cases_of, use_partial_labels
from tests.conftest import write_boxes
from tests.support.raw_datasets import change_description
from tests.support.small_trainers import small_trainers

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
CASES = [f"{'AB'[number % 2]}__case_{number:03d}" for number in range(6)]
"""Of the centres A and B."""
MARGINAL = TaskConfig(labels="union", pseudo_labels=0)
Build = Callable[..., nnUNetTrainer]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Builds trainers of three labels, of which the cases show the first."""
    root = tmp_path_factory.mktemp("partial")
    folder = write_boxes(root / "raw", shape=(12, 40, 40))
    for number, case in enumerate(CASES):
        for path in sorted(folder.glob(f"*/case_{number:03d}*")):
            path.rename(path.with_name(path.name.replace(f"case_{number:03d}", case)))
    change_description(folder, labels=LABELS)
    dataset = read_dataset(folder, "A")
    with small_trainers(root, dataset) as build:

        def make(
            configuration: str = "2d", trainer: str = "nnUNetTrainer", labels: Any = LABELS, **fields: Any
        ) -> nnUNetTrainer:
            return build(configuration, 0, {**dataset.dataset_json, "labels": labels, **fields}, trainer)

        yield make


def losses_of(trainer: nnUNetTrainer) -> list[float]:
    """Of two steps and a validation step, in the second half of the epochs."""
    trainer.on_train_start()
    trainer.current_epoch = 1
    module = NNUNetModule(trainer)
    module.update_pseudo_labels()
    found = []
    for _ in range(2):
        loss = module.training_step(next(trainer.dataloader_train), 0)
        assert loss is not None
        loss.backward()
        trainer.optimizer.step()
        found.append(loss.item())
    with torch.no_grad():
        found.append(float(trainer.validation_step(next(trainer.dataloader_val))["loss"]))
    return found


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_training_on_all_labels_is_what_it_was_bit_for_bit(build: Build, configuration: str) -> None:
    names = list(LABELS)[1:]
    expected = losses_of(build(configuration))
    for fields in ({}, {"annotated": names}, {"annotated": {"A": names, "B": names}}):
        trainer = build(configuration, **fields)
        use_partial_labels(trainer, TaskConfig(labels="union", exclusion=True))
        assert losses_of(trainer) == expected


def test_what_is_not_annotated_is_taught_in_training_and_not_validated(build: Build) -> None:
    found = []
    for share in (0.0, 1.0):
        trainer = build(annotated=["liver"])
        use_partial_labels(trainer, TaskConfig(labels="union", pseudo_labels=share))
        found.append(losses_of(trainer))
    assert found[1][0] > found[0][0]
    batch, values = next(trainer.dataloader_val), []
    for weight in (0.0, 1.0):
        trainer.loss.loss.pseudo_weight = weight
        with torch.no_grad():
            values.append(float(trainer.validation_step(batch)["loss"]))
    assert values[0] == values[1]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize(
    "trainer_class", ["nnUNetTrainer", "nnUNetTrainerNoDeepSupervision", "nnUNetTrainerTopk10Loss"]
)
def test_a_trainer_learns_nothing_of_what_its_node_has_not_annotated(
    build: Build, trainer_class: str, configuration: str
) -> None:
    trainer = build(configuration, trainer_class, annotated=["liver"])
    use_partial_labels(trainer, MARGINAL)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    is_deep = isinstance(batch["target"], list)
    relabelled = [torch.where(one == 0, 2, one) for one in (batch["target"] if is_deep else [batch["target"]])]
    logits = trainer.network(batch["data"])
    loss = trainer.loss(logits, batch["target"])
    assert torch.isfinite(loss)
    assert trainer.loss(logits, relabelled if is_deep else relabelled[0]) == loss, "a spleen is as good as background"
    assert losses_of(build(configuration, trainer_class))[0] != pytest.approx(loss.item(), abs=1e-3)


def test_cases_of_several_centres_train_by_what_each_has_annotated(build: Build) -> None:
    annotated = {"A": ["liver", "kidney"], "B": ["liver"]}
    trainer = build(annotated=annotated)
    use_partial_labels(trainer, MARGINAL)
    trainer.on_train_start()
    rows: dict[tuple[str, ...], list[int]] = {}
    while len(rows) < 2:
        batch, rows = next(trainer.dataloader_train), {}
        for row, case in enumerate(batch["keys"]):
            rows.setdefault(tuple(annotated[case[0]]), []).append(row)
    loss = NNUNetModule(trainer).training_step(batch, 0)
    assert loss is not None
    logits, expected = trainer.network(batch["data"]), 0.0
    for names, part in rows.items():
        alone = build(annotated=list(names))
        use_partial_labels(alone, MARGINAL)
        value = alone.loss([one[part] for one in logits], [one[part] for one in batch["target"]])
        expected += len(part) / len(batch["keys"]) * value.item()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        assert float(trainer.validation_step(batch)["loss"]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(RuntimeError, match="which cases"):
        trainer.loss(logits, batch["target"])


# pseudo-Dice ----------------------------------------------------------------------------------------------


def label_maps(**voxels: list[tuple[int, int]]) -> torch.Tensor:
    """A map (1, 1, 8, 20): voxels of each label, from the first to before the second in reading order."""
    made = torch.zeros(160, dtype=torch.int16)
    for name, ranges in voxels.items():
        for start, end in ranges:
            made[start:end] = LABELS[name]
    return made.reshape(1, 1, 8, 20)


def logits_of(label_map: torch.Tensor) -> torch.Tensor:
    """What a network would predict that is sure of a label map."""
    return 9 * nn.functional.one_hot(label_map[:, 0].long(), 4).movedim(-1, 1).float()


def validate(trainer: nnUNetTrainer, *epochs: dict[str, Any]) -> list[float]:
    """Pseudo-Dice of each epoch of one batch, whose ``data`` are label maps that the network predicts."""
    trainer.network = logits_of
    for trainer.current_epoch, batch in enumerate(epochs):
        trainer.on_validation_epoch_end([trainer.validation_step(dict(batch))])
    return trainer.logger.get_value("mean_fg_dice", step=None)


FOUND = {"data": label_maps(liver=[(0, 55)], spleen=[(100, 107)]), "target": label_maps(liver=[(5, 60)])}
"""50 voxels of liver are right, 5 too many, 5 missed; 7 are called spleen."""
NOTHING = {"data": label_maps(spleen=[(100, 107)]), "target": label_maps()}


def test_pseudo_dice_leaves_out_what_is_not_annotated(build: Build) -> None:
    plain, partial = (build(trainer="nnUNetTrainerNoDeepSupervision", annotated=["liver"]) for _ in range(2))
    use_partial_labels(partial, MARGINAL)
    assert validate(plain, FOUND) == [pytest.approx(10 / 11 / 2)]
    assert validate(partial, FOUND) == [pytest.approx(10 / 11)]
    by_class = partial.logger.get_value("dice_per_class_or_region", step=-1)
    assert by_class[0] == pytest.approx(10 / 11)
    assert np.isnan(by_class[1:]).all()


def test_an_epoch_without_annotated_voxels_leaves_the_moving_average(build: Build) -> None:
    trainer = build(trainer="nnUNetTrainerNoDeepSupervision", annotated=["liver"])
    use_partial_labels(trainer, MARGINAL)
    found = validate(trainer, NOTHING, FOUND, NOTHING, FOUND)
    assert np.isnan(found).tolist() == [True, False, True, False]
    averages = trainer.logger.get_value("ema_fg_dice", step=None)
    assert averages == pytest.approx([0.0, 0.1 * 10 / 11, 0.1 * 10 / 11, 0.19 * 10 / 11])


def test_pseudo_dice_of_pooled_cases_counts_in_each_what_is_annotated_there(build: Build) -> None:
    annotated = {"A": ["spleen"], "B": ["liver"]}
    trainer = build(trainer="nnUNetTrainerNoDeepSupervision", annotated=annotated)
    use_partial_labels(trainer, MARGINAL)
    other = {"data": label_maps(liver=[(0, 9)], spleen=[(100, 107)]), "target": label_maps(spleen=[(100, 108)])}
    batch = {name: torch.cat([FOUND[name], other[name], FOUND[name]]) for name in ("data", "target")}
    trainer.network = logits_of
    output = trainer.validation_step({**batch, "keys": [CASES[1], CASES[2], CASES[3]]})
    counts = {name: output[name].tolist() for name in ("tp_hard", "fp_hard", "fn_hard")}
    assert counts == {"tp_hard": [100, 7, 0], "fp_hard": [10, 0, 0], "fn_hard": [10, 1, 0]}


# what is refused ------------------------------------------------------------------------------------------


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "kidney": 3}


class Weighted(nnUNetTrainer):
    def _build_loss(self) -> nn.Module:
        return DeepSupervisionWrapper(RobustCrossEntropyLoss(weight=torch.ones(4)), (1.0,))


class OwnScales(nnUNetTrainer):
    def _build_loss(self) -> nn.Module:
        return RobustCrossEntropyLoss()


class OtherLoss(nnUNetTrainer):
    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"loss": np.float32(RobustCrossEntropyLoss()(self.network(batch["data"])[0], batch["target"][0]).item())}


class OwnStep(nnUNetTrainer):
    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        return super().train_step(batch)


class NoCounts(nnUNetTrainer):
    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"loss": super().validation_step(batch)["loss"]}


OWN = {one.__name__: one for one in (Weighted, OwnScales, OtherLoss, OwnStep, NoCounts, nnUNetTrainer)}
POOLED = {"A": ["liver", "spleen"], "B": ["liver"]}


@pytest.fixture
def build_own(build: Build, monkeypatch: pytest.MonkeyPatch) -> Build:
    """As ``build``, for the classes of this file."""
    monkeypatch.setattr(trainer_module, "find_trainer", OWN.__getitem__)
    return build


@pytest.mark.parametrize(
    ("annotated", "text"),
    [
        ([], "annotated of dataset.json is []; it must name some of the task's labels (liver, spleen, kidney)"),
        (["lung"], "annotated of dataset.json is ['lung']"),
        (["background"], "annotated of dataset.json is ['background']"),
        ("liver", "annotated of dataset.json is liver"),
        ({**POOLED, "B": []}, "annotated of dataset.json is []"),
    ],
)
def test_annotations_that_are_no_labels_are_refused(build: Build, annotated: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        use_partial_labels(build(annotated=annotated), MARGINAL)


def test_a_case_without_annotations_is_refused_without_its_name_for_others(build: Build) -> None:
    with pytest.raises(DataError, match="lacks the centre of the cases A__case_000, A__case_002") as caught:
        use_partial_labels(build(annotated={"B": ["liver"]}), MARGINAL)
    assert caught.value.public is not None
    assert "lacks the centre of 3 cases" in caught.value.public


def test_regions_are_refused(build: Build) -> None:
    trainer = build(labels=REGIONS, regions_class_order=[1, 2, 3], annotated=["whole"])
    with pytest.raises(ConfigError, match=r"labels of dataset.json has regions \(whole, core, kidney\)"):
        use_partial_labels(trainer, MARGINAL)


def test_values_with_gaps_are_refused(build: Build) -> None:
    trainer = build(labels={"background": 0, "liver": 1, "spleen": 4}, annotated=["liver"])
    with pytest.raises(ConfigError, match="need the values 0 to 2"):
        use_partial_labels(trainer, MARGINAL)


@pytest.mark.parametrize(
    ("trainer", "text"),
    [("Weighted", "a weight for each class"), ("OwnScales", "weighs the outputs of deep supervision in its own way")],
)
def test_a_loss_that_takes_no_merged_classes_is_refused(build_own: Build, trainer: str, text: str) -> None:
    made = build_own(trainer=trainer, annotated=["liver"])
    with pytest.raises(ConfigError, match=f"trainer.class={trainer} cannot learn from labels in part: .*{text}"):
        use_partial_labels(made, MARGINAL)


def test_a_step_that_does_without_the_trainers_loss_is_refused(build_own: Build) -> None:
    trainer = build_own(trainer="OtherLoss", annotated=["liver"])
    use_partial_labels(trainer, MARGINAL)
    trainer.on_train_start()
    with pytest.raises(ConfigError, match=r"OtherLoss has a train_step that does not call self\.loss"):
        NNUNetModule(trainer).training_step(next(trainer.dataloader_train), 0)


@pytest.mark.parametrize("annotated", [["liver"], POOLED])
def test_a_trainers_own_step_learns_by_what_is_annotated(build_own: Build, annotated: Any) -> None:
    trainer = build_own(trainer="OwnStep", annotated=annotated)
    use_partial_labels(trainer, MARGINAL)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    with torch.no_grad(), cases_of(trainer.loss, batch):
        expected = trainer.loss(trainer.network(batch["data"]), batch["target"]).item()
    module = NNUNetModule(trainer)
    module.training_step(batch, 0)
    assert float(module._train_outputs[0]["loss"]) == pytest.approx(expected, abs=1e-6)


def test_a_trainers_own_step_is_taught(build_own: Build) -> None:
    found = []
    for trainer_class, share in (("OwnStep", 1.0), ("nnUNetTrainer", 1.0), ("OwnStep", 0.0)):
        trainer = build_own(trainer=trainer_class, annotated=["liver"])
        use_partial_labels(trainer, TaskConfig(labels="union", pseudo_labels=share))
        trainer.on_train_start()
        trainer.current_epoch = 1
        module = NNUNetModule(trainer)
        module.update_pseudo_labels()
        module.training_step(next(trainer.dataloader_train), 0)
        found.append(float(module._train_outputs[0]["loss"]))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0] > found[2]


def test_a_validation_step_without_counts_is_refused(build_own: Build) -> None:
    trainer = build_own(trainer="NoCounts", annotated=["liver"])
    use_partial_labels(trainer, MARGINAL)
    trainer.on_train_start()
    with pytest.raises(ConfigError, match="NoCounts has a validation_step without tp_hard, fp_hard and fn_hard"):
        trainer.validation_step(next(trainer.dataloader_val))


def test_dice_over_a_batch_on_several_devices_is_refused_for_cases_annotated_unlike(build: Build) -> None:
    trainer = build(annotated=POOLED)
    assert trainer.configuration_manager.batch_dice
    trainer.loss.loss.dc.ddp = True
    with pytest.raises(ConfigError, match=r"set compute\.num_devices=1"):
        use_partial_labels(trainer, MARGINAL)
