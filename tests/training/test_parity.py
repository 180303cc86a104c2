"""The Lightning loop follows nnU-Net's own, bit for bit on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config import ModelConfig, NodeConfig, TrainerConfig
from fednnunet.datasets.raw import raw_digest, read_dataset, stage_dataset
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning import make_plans
from fednnunet.preprocessing import cache_key, preprocess
from fednnunet.training.build import build_lightning_trainer, build_nnunet_trainer
from fednnunet.training.data import NNUNetDataModule
from fednnunet.training.module import NNUNetModule

EPOCHS = 3
TRAINER = TrainerConfig(
    class_="nnUNetTrainer",
    epochs=EPOCHS,
    iterations=3,
    val_iterations=2,
    initial_lr=0.01,
    weight_decay=3e-5,
    oversample_foreground=0.33,
)
NODE = NodeConfig(
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


@pytest.fixture(params=["2d", "3d_fullres"])
def build(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], nnUNetTrainer]:
    """A freshly seeded, initialised trainer on a preprocessed dataset, its results in a folder of its own."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    dataset = read_dataset(make_dataset(shape=(12, 40, 40)), "A")
    stage_dataset(dataset, tmp_path / "nnUNet_raw")
    plans = make_plans(dataset.name, extract_fingerprint(dataset), SMALL, 8.0)
    planned = tmp_path / "nnUNet_preprocessed" / dataset.name
    cache = tmp_path / "cache" / cache_key(raw_digest(dataset), plans, request.param, [])
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocess(dataset, planned, plans, request.param, cache)))

    def make(results: str) -> nnUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        L.seed_everything(7, verbose=False)
        return build_nnunet_trainer(plans, request.param, 0, dataset.dataset_json, TRAINER, torch.device("cpu"))

    return make


def test_losses_follow_run_training_bit_for_bit(build: Callable[[str], nnUNetTrainer], tmp_path: Path) -> None:
    theirs = build("theirs")
    theirs.run_training()

    ours = build("ours")
    ours.on_train_start()
    module = NNUNetModule(ours)
    build_lightning_trainer(module, NODE, [], tmp_path).fit(module, datamodule=NNUNetDataModule(ours))

    expected = copy.deepcopy(theirs.logger.get_checkpoint())
    measured: dict[str, Any] = ours.logger.get_checkpoint()
    for name in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
        assert len(measured[name]) == EPOCHS
        assert [float(value) for value in measured[name]] == [float(value) for value in expected[name]], name
    for (name, theirs_tensor), ours_tensor in zip(
        theirs.network.state_dict().items(), ours.network.state_dict().values(), strict=True
    ):
        assert torch.equal(theirs_tensor, ours_tensor), name
