"""What can be checked of a configuration before nodes start: names of classes, files to start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.config.run import RunConfig
from fednnunet.errors import ConfigError
from fednnunet.planning.class_lookup import check_nnunet_class
from fednnunet.training.final_checkpoint import find_checkpoint

EXTENSIONS = "nnUNet_extTrainer"
"""nnU-Net's variable for a folder of own trainers."""


def check_names_and_files(config: RunConfig) -> None:
    """Check, where nodes are on this machine, what they would refuse later; they check the rest.

    Raises:
        ConfigError: names the key, and what it should be.
    """
    for key, name, folder, default in _classes(config):
        if "." not in name:  # else an import path, which only nodes import
            check_nnunet_class(name, key, folder, default)
    for node in [POOLED_NODE] if config.pools_cases else [centre.name for centre in config.training_centres]:
        plans, weights = config.init.plans_of(node), config.init.weights_of(node)
        config.check_start(node)
        _check_exists("init.plans", plans)
        if weights is not None:
            for fold in config.folds:
                find_checkpoint(weights, node, fold)
    _check_exists("init.previous_stage", config.init.previous_stage)


def _classes(config: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    """Key, name, the folder of nnU-Net's package that defines it, and nnU-Net's default."""
    if not os.environ.get(EXTENSIONS):
        yield "trainer.class", config.trainer.class_, "training/nnUNetTrainer", "nnUNetTrainer"
    yield "model.planner", config.model.planner, "experiment_planning", "ExperimentPlanner"
    if config.model.preprocessor is not None:
        yield "model.preprocessor", config.model.preprocessor, "preprocessing", "DefaultPreprocessor"


def _check_exists(key: str, path: Path | None) -> None:
    if path is not None and not path.expanduser().exists():
        raise ConfigError(f"{key}: there is no file {path}")
