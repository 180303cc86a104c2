"""The Lightning loop follows nnU-Net's own, bit for bit on the CPU, for every trainer that nnU-Net has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.groups import ComputeConfig, ModelConfig, TrainerConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import raw_digest, stage_dataset
from fednnunet.errors import ConfigError
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning.class_lookup import nnunet_classes
from fednnunet.planning.plans import make_plans
from fednnunet.preprocessing import cache_key, preprocess
from fednnunet.training import trainer as build
from fednnunet.training.data import NNUNetDataModule
from fednnunet.training.lightning_trainer import build_lightning_trainer
from fednnunet.training.module import GRADIENT_CLIP_NORM, NNUNetModule, check_takes_terms
from fednnunet.training.network_state import named_tensors
from fednnunet.training.trainer import build_nnunet_trainer, nested_transforms
from tests.conftest import write_boxes

CONFIGURATIONS = ("2d", "3d_fullres")
TRAINER = TrainerConfig(
    class_="nnUNetTrainer",
    epochs=4,
    iterations=3,
    val_iterations=2,
    initial_lr=0.1,
    weight_decay=3e-5,
    oversample_foreground=0.33,
)
VARIANT = TrainerConfig(class_="nnUNetTrainer", epochs=1, iterations=2, val_iterations=1)
"""All else as the class sets it."""
STEEPNESS = 50.0
"""Factor on the initial weights of the segmentation layers; it makes gradients that have to be clipped."""
COMPUTE = ComputeConfig(
    device="cpu",
    precision="auto",
    augmentation_workers=0,
    preprocessing_workers=1,
    threads=1,
    compile=False,
)
SMALL = ModelConfig(
    planner="ExperimentPlanner",
    overrides={"UNet_base_num_features": 4, "UNet_max_features_2d": 8, "UNet_max_features_3d": 8},
)
EXCLUDED = {
    "nnUNetTrainerAdan": "needs the package adan_pytorch",
    "nnUNetTrainerBenchmark_5epochs": "asserts a GPU",
    "nnUNetTrainerBenchmark_5epochs_noDataLoading": "asserts a GPU, and trains on no data",
    "primus_trainers": "Primus needs torchvision",
}
"""Files of nnU-Net whose trainers cannot run here, and why."""

MODULES = nnunet_classes("training/nnUNetTrainer")
"""Every trainer class that ``trainer.class`` can name, with its module."""

Build = Callable[..., nnUNetTrainer]


def file_of(name: str) -> str:
    return MODULES[name].rsplit(".", 1)[1]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Makes freshly seeded, initialised trainers on preprocessed data, each with a folder of results of its own."""
    root = tmp_path_factory.mktemp("parity")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, str(root / variable))
        patch.setenv("nnUNet_n_proc_DA", "0")
        dataset = read_dataset(write_boxes(root / "raw", shape=(12, 40, 40)), "A")
        stage_dataset(dataset, root / "nnUNet_raw")
        plans = make_plans(dataset.name, extract_fingerprint(dataset), SMALL, 8.0)
        planned = root / "nnUNet_preprocessed" / dataset.name
        caches = {name: root / "cache" / cache_key(raw_digest(dataset), plans, name, []) for name in CONFIGURATIONS}
        for configuration, cache in caches.items():
            preprocess(dataset, planned, plans, configuration, cache)

        def make_trainer(configuration: str, results: str, settings: TrainerConfig) -> nnUNetTrainer:
            patch.setenv("nnUNet_preprocessed", str(caches[configuration]))
            patch.setenv("nnUNet_results", str(root / results / settings.class_ / configuration))
            L.seed_everything(7, verbose=False)
            return build_nnunet_trainer(plans, configuration, 0, dataset.dataset_json, settings, torch.device("cpu"))

        try:
            yield make_trainer
        finally:
            torch.set_num_threads(threads)


@dataclass
class Run:
    """A trainer that has trained, and what it did on the way.

    Attributes:
        trainer: after its last epoch.
        losses: of every training step, epoch by epoch.
        clipped: the norm to clip at and the norm found, of every training step.
    """

    trainer: nnUNetTrainer
    losses: list[list[float]] = field(default_factory=list)
    clipped: list[tuple[float, float]] = field(default_factory=list)

    def checkpoint(self, name: str) -> dict[str, Any]:
        path = Path(self.trainer.output_folder) / f"checkpoint_{name}.pth"
        return torch.load(path, weights_only=False)

    def logged(self, name: str) -> list[float]:
        return [float(value) for value in self.trainer.logger.get_checkpoint()[name]]


def train(trainer: nnUNetTrainer, loop: Callable[[nnUNetTrainer], None]) -> Run:
    """Train with ``loop``, and record every step on the way."""
    run = Run(trainer)
    end_epoch, clip = trainer.on_train_epoch_end, torch.nn.utils.clip_grad_norm_

    def on_train_epoch_end(outputs: list[dict[str, Any]]) -> None:
        run.losses.append([float(output["loss"]) for output in outputs])
        end_epoch(outputs)

    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> torch.Tensor:
        norm = clip(parameters, max_norm, *args, **kwargs)
        run.clipped.append((float(max_norm), float(norm)))
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "on_train_epoch_end", on_train_epoch_end)
        patch.setattr(torch.nn.utils, "clip_grad_norm_", clip_grad_norm_)
        loop(trainer)
    return run


def nnunet_loop(trainer: nnUNetTrainer) -> None:
    trainer.run_training()


def lightning_loop(trainer: nnUNetTrainer) -> None:
    trainer.on_train_start()
    module = NNUNetModule(trainer)
    root = Path(trainer.output_folder)
    build_lightning_trainer(module, COMPUTE, [], root).fit(module, datamodule=NNUNetDataModule(trainer))
    trainer.on_train_end()


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal in keys and their order, lengths, dtypes, shapes and every value."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}/{key}")
    elif torch.is_tensor(theirs):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, list):
        assert_same(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    else:
        assert ours == theirs, where


@dataclass
class Pair:
    """The same training twice."""

    ours: Run
    theirs: Run


def train_twice(make: Build, configuration: str, settings: TrainerConfig) -> Pair:
    """Train by Lightning and by ``run_training``, from the same seed."""
    theirs = train(make(configuration, "theirs", settings), nnunet_loop)
    ours = train(make(configuration, "ours", settings), lightning_loop)
    return Pair(ours, theirs)


def assert_same_training(pair: Pair, settings: TrainerConfig) -> None:
    """Finite and equal losses of every step, equal weights and optimizer at the end."""
    assert np.shape(pair.ours.losses) == (settings.epochs, settings.iterations)
    assert np.isfinite(pair.ours.losses).all()
    assert pair.ours.losses == pair.theirs.losses
    assert_same(pair.ours.trainer.network.state_dict(), pair.theirs.trainer.network.state_dict())
    assert_same(pair.ours.trainer.optimizer.state_dict(), pair.theirs.trainer.optimizer.state_dict())


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def pair(request: pytest.FixtureRequest, make: Build) -> Pair:
    """nnU-Net's default trainer, from weights that let it clip in some steps and not in others."""

    def make_steep(*args: Any) -> nnUNetTrainer:
        trainer = make(*args)
        with torch.no_grad():
            for layer in trainer.network.decoder.seg_layers:
                layer.weight.mul_(STEEPNESS)
        return trainer

    return train_twice(make_steep, request.param, TRAINER)


def test_losses_follow_run_training_bit_for_bit(pair: Pair) -> None:
    assert_same_training(pair, TRAINER)


@pytest.mark.parametrize("name", ["train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"])
def test_figures_of_every_epoch(pair: Pair, name: str) -> None:
    assert len(pair.ours.logged(name)) == TRAINER.epochs
    assert pair.ours.logged(name) == pair.theirs.logged(name)


def test_no_augmentation_follows_the_clock(make: Build) -> None:
    train, _ = make("2d", "untimed", VARIANT).get_dataloaders()
    blurs = [
        part for part in nested_transforms(train.data_loader.transforms) if isinstance(part, GaussianBlurTransform)
    ]
    assert blurs
    assert not any(blur.benchmark for blur in blurs)


def test_learning_rate_falls(pair: Pair) -> None:
    rates = pair.ours.logged("lrs")
    assert rates[0] == TRAINER.initial_lr
    assert rates == sorted(set(rates), reverse=True)


def test_best_checkpoint_is_of_the_same_epoch(pair: Pair) -> None:
    assert pair.ours.trainer._best_ema == pair.theirs.trainer._best_ema
    ours, theirs = pair.ours.checkpoint("best"), pair.theirs.checkpoint("best")
    assert ours["current_epoch"] == theirs["current_epoch"]
    assert ours["_best_ema"] == theirs["_best_ema"]
    assert_same(ours["network_weights"], theirs["network_weights"])


def test_final_checkpoint_holds_the_same_momentum(pair: Pair) -> None:
    ours, theirs = pair.ours.checkpoint("final"), pair.theirs.checkpoint("final")
    assert ours["current_epoch"] == theirs["current_epoch"] == TRAINER.epochs
    momentum = [state["momentum_buffer"] for state in ours["optimizer_state"]["state"].values()]
    # The coarsest output weighs 0 in the loss, so its layer has no gradient.
    trained = [parameter for parameter in pair.theirs.trainer.network.parameters() if parameter.grad is not None]
    assert len(momentum) == len(trained)
    assert all(buffer.any() for buffer in momentum)
    assert_same(ours["optimizer_state"], theirs["optimizer_state"])
    assert_same(ours["network_weights"], theirs["network_weights"])


def test_deep_supervision_weighs_the_same(pair: Pair) -> None:
    weights = pair.ours.trainer.loss.weight_factors
    assert sum(weight > 0 for weight in weights) > 1
    assert weights == pair.theirs.trainer.loss.weight_factors
    assert pair.ours.trainer.network.decoder.deep_supervision


def test_gradients_are_clipped_at_the_same_norm(pair: Pair) -> None:
    assert pair.ours.clipped == pair.theirs.clipped
    assert len(pair.ours.clipped) == TRAINER.epochs * TRAINER.iterations
    assert {limit for limit, _ in pair.ours.clipped} == {GRADIENT_CLIP_NORM}
    norms = [norm for _, norm in pair.ours.clipped]
    assert min(norms) < GRADIENT_CLIP_NORM < max(norms)


def test_every_exclusion_names_a_file() -> None:
    assert set(EXCLUDED) <= {file_of(name) for name in MODULES}


@pytest.mark.integration
@pytest.mark.parametrize("name", [name for name in MODULES if file_of(name) not in EXCLUDED])
def test_variant_follows_run_training(make: Build, name: str) -> None:
    settings = VARIANT.model_copy(update={"class_": name})
    pair = train_twice(make, "2d", settings)
    assert type(pair.ours.trainer).__name__ == name
    assert_same_training(pair, settings)


class OwnStep(nnUNetTrainer):
    """A trainer with a step of its own, which none of nnU-Net's that run here has."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.5 * self.loss(self.network(batch["data"]), batch["target"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 0.1)
        self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}


def test_own_train_step_is_kept(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_trainer", {"OwnStep": OwnStep}.__getitem__)
    settings = TRAINER.model_copy(update={"class_": "OwnStep"})
    pair = train_twice(make, "2d", settings)
    assert_same_training(pair, settings)
    assert pair.ours.clipped == pair.theirs.clipped
    assert {limit for limit, _ in pair.ours.clipped} == {0.1}


class Pull(L.Callback):
    """Sets FedProx's term at the start of every epoch, as a node does at the start of every round."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.origin: dict[str, torch.Tensor] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.origin = {name: tensor.detach().clone() for name, tensor in named_tensors(pl_module.network)}
        pl_module.set_proximal_term(self.origin, self.weight)


def distance_after_epoch(trainer: nnUNetTrainer, weight: float) -> float:
    pull = Pull(weight)
    trainer.on_train_start()
    module = NNUNetModule(trainer)
    root = Path(trainer.output_folder)
    build_lightning_trainer(module, COMPUTE, [pull], root).fit(module, datamodule=NNUNetDataModule(trainer))
    moved = [(tensor.detach() - pull.origin[name]).norm() ** 2 for name, tensor in named_tensors(trainer.network)]
    return float(sum(moved) ** 0.5)


def test_the_proximal_term_holds_layers_near_what_the_round_began_with(make: Build) -> None:
    settings = TRAINER.model_copy(update={"epochs": 1, "iterations": 6, "initial_lr": 0.01})
    free, weak, strong = (distance_after_epoch(make("2d", "pull", settings), weight) for weight in (0.0, 1.0, 30.0))
    assert strong < weak < free
    assert strong < 0.8 * free


def test_the_proximal_term_is_refused_where_it_cannot_be_added(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_trainer", {"OwnStep": OwnStep}.__getitem__)
    module = NNUNetModule(make("2d", "pull", TRAINER.model_copy(update={"class_": "OwnStep"})))
    module.set_proximal_term({}, 0.0)
    with pytest.raises(ConfigError, match="OwnStep has its own train_step"):
        module.set_proximal_term({}, 0.1)
    with pytest.raises(ConfigError, match=r"^strategy\.ditto_lambda: trainer\.class=OwnStep has its own train_step"):
        check_takes_terms(module.nnunet, "strategy.ditto_lambda")
