"""nnU-Net's trainers of small networks on a dataset that a test makes, 2d and 3d, without processes of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.groups import ModelConfig, TrainerConfig
from fednnunet.datasets.raw import RawDataset
from fednnunet.datasets.staging import stage_dataset
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning.plans import make_plans
from fednnunet.preprocessing import preprocess
from fednnunet.training.trainer import build_nnunet_trainer

BuildSmall = Callable[..., nnUNetTrainer]
"""Configuration, fold, ``dataset.json`` and name of the trainer's class to a trainer of two epochs."""


@contextmanager
def small_trainers(root: Path, dataset: RawDataset) -> Iterator[BuildSmall]:
    """Plan and preprocess ``dataset`` below ``root``; nnU-Net's folders lie there meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, str(root / variable))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr("fednnunet.fingerprint.extract.MAX_FOREGROUND_VOXELS", 6e4)  # sampled in no time
        stage_dataset(dataset, root / "nnUNet_raw")
        model = ModelConfig(
            planner="ExperimentPlanner",
            overrides={"UNet_base_num_features": 4, "UNet_max_features_2d": 8, "UNet_max_features_3d": 8},
        )
        plans = make_plans(dataset.name, extract_fingerprint(dataset), model, 8.0)
        planned = root / "nnUNet_preprocessed" / dataset.name
        caches = {
            name: preprocess(dataset, planned, plans, name, root / "cache" / name) for name in ("2d", "3d_fullres")
        }

        def build(
            configuration: str, fold: int | str, description: dict[str, Any], trainer: str = "nnUNetTrainer"
        ) -> nnUNetTrainer:
            patch.setenv("nnUNet_preprocessed", str(caches[configuration]))
            L.seed_everything(7, verbose=False)
            settings = TrainerConfig(class_=trainer, epochs=2, iterations=2, val_iterations=2)
            cpu = torch.device("cpu")
            return build_nnunet_trainer(copy.deepcopy(plans), configuration, fold, description, settings, cpu)

        yield build
