"""Networks of one and two stages, which nnU-Net's deep supervision cannot weigh."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.groups import ModelConfig, TrainerConfig
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.staging import stage_dataset
from fednnunet.errors import ConfigError
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning.plans import make_plans
from fednnunet.preprocessing import preprocess
from fednnunet.training.module import NNUNetModule
from fednnunet.training.trainer import build_nnunet_trainer
from tests.conftest import write_boxes

CPU = torch.device("cpu")
EDGES = {1: 24, 2: 16, 3: 8}
"""Stages of a network for patches of 40 x 40, and the smallest edge of feature maps that leads to them."""
Plans = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RawDataset:
    return read_dataset(write_boxes(tmp_path_factory.mktemp("few") / "raw"), "A")


@pytest.fixture(scope="module")
def plans(dataset: RawDataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    """Plans of a network with so many stages; the data are preprocessed, which is the same for all."""
    root = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, str(root / variable))
        patch.setenv("nnUNet_n_proc_DA", "0")
        stage_dataset(dataset, root / "nnUNet_raw")
        fingerprint = extract_fingerprint(dataset)

        def plan(stages: int) -> dict[str, Any]:
            overrides = {"UNet_base_num_features": 4, "UNet_featuremap_min_edge_length": EDGES[stages]}
            model = ModelConfig(planner="ExperimentPlanner", overrides=overrides)
            return make_plans(dataset.name, fingerprint, model, 8.0)

        made = {stages: plan(stages) for stages in EDGES}
        planned = root / "nnUNet_preprocessed" / dataset.name
        patch.setenv("nnUNet_preprocessed", str(preprocess(dataset, planned, made[3], "2d", root / "cache")))
        yield made


def build(plans: dict[str, Any], dataset: RawDataset, trainer: str = "nnUNetTrainer") -> nnUNetTrainer:
    settings = TrainerConfig(class_=trainer, epochs=1, iterations=1, val_iterations=1)
    return build_nnunet_trainer(plans, "2d", 0, dataset.dataset_json, settings, CPU)


def loss_of_a_batch(trainer: nnUNetTrainer) -> torch.Tensor:
    trainer.on_train_start()
    module = NNUNetModule(trainer)
    trainer.network.train()
    loss = module.training_step(next(trainer.dataloader_train), 0)
    assert loss is not None
    return loss


@pytest.mark.parametrize(("stages", "text"), [(1, "network for 2d has 1 stage "), (2, "network for 2d has 2 stages ")])
def test_a_network_whose_losses_would_be_nan_is_refused(
    plans: Plans, dataset: RawDataset, stages: int, text: str
) -> None:
    assert plans[stages]["configurations"]["2d"]["architecture"]["arch_kwargs"]["n_stages"] == stages
    with pytest.raises(ConfigError, match=text) as caught, np.errstate(invalid="ignore"):
        build(plans[stages], dataset)
    assert "plan 3 or more" in str(caught.value)
    assert ("nnUNetTrainerNoDeepSupervision" in str(caught.value)) == (stages == 2), "one stage trains with neither"


def test_nnunet_itself_makes_every_loss_of_two_stages_nan(plans: Plans, dataset: RawDataset) -> None:
    made = copy.deepcopy(plans[2]) | {"continue_training": False}
    trainer = nnUNetTrainer(made, "2d", 0, dataset.dataset_json, CPU)
    with np.errstate(invalid="ignore"):
        trainer.initialize()
    assert torch.isnan(loss_of_a_batch(trainer))


def test_without_deep_supervision_two_stages_train(plans: Plans, dataset: RawDataset) -> None:
    assert torch.isfinite(loss_of_a_batch(build(plans[2], dataset, "nnUNetTrainerNoDeepSupervision")))


def test_three_stages_train(plans: Plans, dataset: RawDataset) -> None:
    trainer = build(plans[3], dataset)
    assert trainer.loss.weight_factors == (1.0, 0.0)
    assert torch.isfinite(loss_of_a_batch(trainer))
