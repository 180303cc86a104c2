"""Trainers of nodes that lack channels: what stays zero, what is dropped, and that it is drawn again on resume."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.union_channels import with_union_channels
from fednnunet.errors import ConfigError
from fednnunet.planning.plans import check_missing_channels
from fednnunet.training import trainer as trainer_module
from fednnunet.training.module import NNUNetModule
from fednnunet.training.partial_channels import PartialChannels, partial_channels_of, use_partial_channels
from tests.conftest import write_boxes
from tests.support.small_trainers import small_trainers

Build = Callable[..., nnUNetTrainer]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Builds trainers of two channels, MRI and PET, of cases that have the first."""
    root = tmp_path_factory.mktemp("channels")
    own = read_dataset(write_boxes(root / "raw", shape=(12, 40, 40)), "A")
    dataset = with_union_channels(own, ["MRI", "PET"], "A", root / "cache")
    with small_trainers(root, dataset) as build:

        def make(configuration: str = "2d", acquired: Any = ("MRI",), fold: int | str = 0) -> nnUNetTrainer:
            description = {key: value for key, value in dataset.dataset_json.items() if key != "acquired"}
            if acquired is not None:
                description["acquired"] = list(acquired)
            return build(configuration, fold, description)

        yield make


def spy(trainer: nnUNetTrainer) -> list[torch.Tensor]:
    """What the network of ``trainer`` sees from here on."""
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def losses_of(trainer: nnUNetTrainer) -> list[float]:
    """Of two steps and a validation step."""
    trainer.on_train_start()
    module = NNUNetModule(trainer)
    found = []
    for step in range(2):
        loss = module.training_step(next(trainer.dataloader_train), step)
        assert loss is not None
        loss.backward()
        trainer.optimizer.step()
        found.append(loss.item())
    with torch.no_grad():
        module.validation_step(next(trainer.dataloader_val), 0)
    return [*found, float(module._validation_outputs[0]["loss"])]


# what a node lacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_missing_channel_stays_zero_after_augmentation(build: Build, configuration: str) -> None:
    augmented = build(configuration, acquired=None)
    augmented.on_train_start()
    batches = [next(augmented.dataloader_train)["data"] for _ in range(8)]
    assert any(batch[:, 1].any() for batch in batches), "or nothing is to be undone"

    trainer = build(configuration)
    use_partial_channels(trainer, drop=0, seed=0)
    trainer.on_train_start()
    module, seen = NNUNetModule(trainer), spy(trainer)
    for step, expected in enumerate(batches):
        module.training_step(next(trainer.dataloader_train), step)
        assert not seen[-1][:, 1].any()
        assert torch.equal(seen[-1][:, 0], expected[:, 0])
    with torch.no_grad():
        batch = next(trainer.dataloader_val)
        batch["data"][:, 1] = 1
        module.validation_step(batch, 0)
    assert not seen[-1][:, 1].any()
    assert seen[-1][:, 0].any()


def test_the_first_layer_learns_nothing_of_a_missing_channel(build: Build) -> None:
    trainer = build()
    use_partial_channels(trainer, drop=0, seed=0)
    trainer.on_train_start()
    loss = NNUNetModule(trainer).training_step(next(trainer.dataloader_train), 0)
    assert loss is not None
    loss.backward()
    first = next(iter(trainer.network.parameters())).grad
    assert first.shape[1] == 2
    assert first[:, 0].any()
    assert not first[:, 1].any()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_training_on_all_channels_is_what_it_was_bit_for_bit(build: Build, configuration: str) -> None:
    expected = losses_of(build(configuration, acquired=None))
    for acquired in (None, ["MRI", "PET"]):
        trainer = build(configuration, acquired)
        use_partial_channels(trainer, drop=0, seed=0)
        assert partial_channels_of(trainer) is None
        assert losses_of(trainer) == expected
    dropping = build(configuration, acquired=None)
    use_partial_channels(dropping, drop=0.9, seed=0)
    assert losses_of(dropping) != expected


def test_a_trainers_own_step_gets_zeros_too(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnStep(nnUNetTrainer):
        def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: torch.device) -> None:
            super().__init__(plans, configuration, fold, dataset_json, device)

        def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
            return super().train_step(batch)

    monkeypatch.setattr(trainer_module, "find_trainer", lambda _: OwnStep)
    trainer = build()
    use_partial_channels(trainer, drop=0, seed=0)
    trainer.on_train_start()
    module, seen = NNUNetModule(trainer), spy(trainer)
    batch = next(trainer.dataloader_train)
    batch["data"][:, 1] = 1
    assert module.training_step(batch, 0) is None
    assert not seen[0][:, 1].any()


# what is dropped ---------------------------------------------------------------------------------------


def test_each_channel_is_dropped_as_often_as_asked_and_never_all() -> None:
    channels = PartialChannels(5, {1: "T1"}, 0.5, (3, 0, 0))
    dropped = np.concatenate([channels.dropped(50, 0, step) for step in range(200)])
    assert dropped.shape == (10_000, 4)
    assert not dropped.all(axis=1).any()
    # Of each, p - P(all) / 4 where one of all is kept: 0.5 - 0.5 ** 4 / 4; 4 standard deviations are 0.02.
    assert dropped.mean(axis=0) == pytest.approx(0.5 - 0.5**4 / 4, abs=0.02)
    (single,) = {PartialChannels(2, {1: "T1"}, 0.99, (3, 0, 0)).dropped(50, 0, step).any() for step in range(9)}
    assert not single


def test_what_is_dropped_is_zero_and_nothing_else() -> None:
    channels = PartialChannels(4, {1: "T1"}, 0.6, (3, 0, 0))
    before = torch.rand(20, 6, 3, 2) + 1  # the last two are of a cascade
    after = channels.training({"data": before.clone()}, 4, 2)["data"]
    expected = before.clone()
    expected[:, 1] = 0
    for sample, row in enumerate(channels.dropped(20, 4, 2)):
        for number, is_dropped in zip((0, 2, 3), row, strict=True):
            if is_dropped:
                expected[sample, number] = 0
    assert torch.equal(after, expected)
    assert len({tuple(row) for row in (after[:, [0, 2, 3], 0, 0] == 0).tolist()}) > 3, "samples differ"
    validated = channels.validation({"data": before.clone()})["data"]
    assert torch.equal(validated[:, [0, 2, 3, 4, 5]], before[:, [0, 2, 3, 4, 5]])


def test_steps_differ_and_are_drawn_again_on_resume() -> None:
    def drawn(seed: tuple[int, ...], epoch: int, step: int) -> bytes:
        return PartialChannels(6, {}, 0.5, seed).dropped(40, epoch, step).tobytes()

    places = [
        ((seed, fold, rank), e, s)
        for seed in (0, 1)
        for fold in (0, 1)
        for rank in (0, 1)
        for e in (0, 1)
        for s in (0, 1)
    ]
    first = [drawn(*place) for place in places]
    torch.manual_seed(1)
    np.random.seed(1)
    assert [drawn(*place) for place in reversed(places)] == first[::-1]
    assert len(set(first)) == len(places)


def test_a_run_that_resumes_drops_what_it_would_have(build: Build) -> None:
    def seen_by(trainer: nnUNetTrainer, epochs: list[int]) -> list[list[bool]]:
        use_partial_channels(trainer, drop=0.5, seed=5)
        module, seen = NNUNetModule(trainer), spy(trainer)
        for trainer.current_epoch in epochs:
            for step in range(2):
                data = torch.ones(4, 2, *trainer.configuration_manager.patch_size)
                target = [
                    torch.zeros(4, 1, *(int(s) for s in np.round(np.multiply(data.shape[2:], scale))))
                    for scale in trainer._get_deep_supervision_scales()
                ]
                module.training_step({"data": data, "target": target}, step)
        return [(data[:, :, 0, 0] == 0).flatten().tolist() for data in seen]

    whole = seen_by(build(acquired=None), [0, 1, 2])
    assert seen_by(build(acquired=None), [2]) == whole[4:]
    assert seen_by(build(acquired=None, fold="all"), [2]) != whole[4:]
    assert any(any(step) for step in whole)


# what is refused ---------------------------------------------------------------------------------------


def test_zeros_that_a_normalization_would_change_are_refused(build: Build) -> None:
    plans = copy.deepcopy(build().plans_manager.plans)
    lacking = {"channel_names": {"0": "MRI", "1": "CT"}, "acquired": ["MRI"]}
    check_missing_channels(plans, "2d", lacking)
    plans["configurations"]["2d"]["normalization_schemes"][1] = "CTNormalization"
    check_missing_channels(plans, "2d", {**lacking, "acquired": ["CT"]})
    with pytest.raises(ConfigError, match=r"^task\.channels=union: channel CT is not .* normalised by CTNormalization"):
        check_missing_channels(plans, "2d", lacking)
