"""Fingerprint, GPU memory and number of cases to nnU-Net's plans."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from fednnunet.config import ModelConfig
from fednnunet.errors import ConfigError


def find_planner(name: str) -> type[ExperimentPlanner]:
    """The planner class that nnU-Net finds under ``name``.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(nnunetv2.__path__[0]) / "experiment_planning"
    planner = recursive_find_python_class(str(folder), name, current_module="nnunetv2.experiment_planning")
    if planner is None:
        raise ConfigError(f"model.planner={name} is no experiment planner that nnU-Net finds")
    return planner


def make_plans(
    dataset: str,
    fingerprint: dict[str, Any],
    model: ModelConfig,
    gpu_memory_gb: float,
    num_training: int | None = None,
) -> dict[str, Any]:
    """Plan with nnU-Net's planner, from ``fingerprint`` instead of the dataset's own.

    ``nnUNet_raw`` must hold ``dataset``; the fingerprint, ``dataset.json`` and the plans are written to
    ``nnUNet_preprocessed/<dataset>``, as nnU-Net does.

    Args:
        dataset: ``DatasetXXX_Name``.
        fingerprint: nnU-Net's, the node's own or the federation's.
        model: planner class and its overrides.
        gpu_memory_gb: planning target in GB.
        num_training: cases that the batch-size cap (5 % of the voxels of the dataset) counts; None for the
            dataset's own.

    Raises:
        ConfigError: unknown planner or override.
    """
    folder = Path(str(nnUNet_preprocessed)) / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    planner = find_planner(model.planner)(dataset, gpu_memory_target_in_gb=gpu_memory_gb)
    for attribute, value in model.overrides.items():
        if not hasattr(planner, attribute):
            raise ConfigError(f"model.overrides.{attribute}: {model.planner} has no such attribute")
        setattr(planner, attribute, value)
    if num_training is not None:
        planner.dataset_json["numTraining"] = num_training
    with _positive_augmentation_processes():
        planner.plan_experiment()
    return json.loads((folder / f"{planner.plans_identifier}.json").read_text())


@contextlib.contextmanager
def _positive_augmentation_processes() -> Iterator[None]:
    """The planner takes its torch threads from ``nnUNet_n_proc_DA`` and fails at 0, which is valid in training."""
    configured = os.environ.get("nnUNet_n_proc_DA")
    if configured == "0":
        os.environ["nnUNet_n_proc_DA"] = "1"
    try:
        yield
    finally:
        if configured is not None:
            os.environ["nnUNet_n_proc_DA"] = configured
