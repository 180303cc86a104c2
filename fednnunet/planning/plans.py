"""From a fingerprint, GPU memory and the number of cases to nnU-Net's plans."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.config.groups import ModelConfig
from fednnunet.datasets.union_channels import missing_channels
from fednnunet.errors import ConfigError
from fednnunet.files import write_atomically
from fednnunet.planning.class_lookup import find_class

BY_THE_IMAGE = ("ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")
"""nnU-Net's normalizations that read nothing but the image (``default_normalization_schemes``)."""


def find_planner(name: str) -> type[ExperimentPlanner]:
    """The planner class that nnU-Net finds under ``name``, or at this import path.

    Raises:
        ConfigError: there is none; with the nearest names.
    """
    return find_class(name, "model.planner", ExperimentPlanner, "experiment_planning")


def make_plans(
    dataset: str,
    fingerprint: dict[str, Any],
    model: ModelConfig,
    gpu_memory_gb: float | None,
    num_training: int | None = None,
) -> dict[str, Any]:
    """Plan with nnU-Net's planner, from ``fingerprint`` instead of the dataset's own.

    ``nnUNet_raw`` must hold ``dataset``; the fingerprint, ``dataset.json`` and the plans are written to
    ``nnUNet_preprocessed/<dataset>``, as nnU-Net does.

    Args:
        dataset: ``DatasetXXX_Name``.
        fingerprint: nnU-Net's fingerprint, the node's own or the federated one.
        model: planner class and its options.
        gpu_memory_gb: planning target in GB; None for the planner's default.
        num_training: number of cases that the batch-size cap (5 % of the voxels of the dataset) counts; None for the
            dataset's own.

    Raises:
        ConfigError: unknown planner, preprocessor or override.
    """
    folder = write_fingerprint(dataset, fingerprint)
    planner = _build_planner(dataset, model, gpu_memory_gb)
    if num_training is not None:
        planner.dataset_json["numTraining"] = num_training
    plans_file = folder / f"{planner.plans_identifier}.json"
    plans_file.unlink(missing_ok=True)  # nnU-Net would keep configurations of an older file
    with _positive_augmentation_processes():
        planner.plan_experiment()
    return json.loads(plans_file.read_text())


def write_fingerprint(dataset: str, fingerprint: dict[str, Any]) -> Path:
    """Store the fingerprint where nnU-Net does; returns the folder, ``nnUNet_preprocessed/<dataset>``."""
    folder = Path(str(nnUNet_preprocessed)) / dataset
    write_atomically(folder / "dataset_fingerprint.json", json.dumps(fingerprint))
    return folder


def _build_planner(dataset: str, model: ModelConfig, gpu_memory_gb: float | None) -> ExperimentPlanner:
    options = {
        "gpu_memory_target_in_gb": gpu_memory_gb,
        "plans_name": model.plans_name,
        "preprocessor_name": model.preprocessor,
        "overwrite_target_spacing": model.overwrite_target_spacing,
    }
    if model.preprocessor is not None:
        find_class(model.preprocessor, "model.preprocessor", DefaultPreprocessor, "preprocessing")
    planner_class = find_planner(model.planner)
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(set(given) - set(inspect.signature(planner_class).parameters))
    if unknown:
        raise ConfigError(f"model.planner={model.planner} takes no {unknown[0]}")
    planner = planner_class(dataset, **given)
    for attribute, value in model.overrides.items():
        if not hasattr(planner, attribute):
            raise ConfigError(f"model.overrides.{attribute}: {model.planner} has no such attribute")
        setattr(planner, attribute, value)
    return planner


def check_intensities(plans: dict[str, Any], configuration: str, channel_names: Mapping[str, str]) -> None:
    """Check that the plans hold foreground intensities of each channel whose normalization may read them.

    A centre without any foreground (healthy controls) has none. nnU-Net has two kinds of normalizations: by the image
    itself, and by the foreground of the whole dataset (``CTNormalization``).

    Raises:
        ConfigError: they lack those of a channel; names channel and normalization.
    """
    intensities = plans["foreground_intensity_properties_per_channel"]
    schemes = PlansManager(plans).get_configuration(configuration).normalization_schemes
    for number, scheme in enumerate(schemes):
        if not intensities.get(str(number)) and scheme not in BY_THE_IMAGE:
            name = channel_names[str(number)]
            raise ConfigError(
                f"no case has foreground, and channel {number} ({name}) is normalised by {scheme}, which "
                "needs the foreground's intensities; strategy=ffe takes the federation's (with a normalization of your "
                "own: fingerprint.intensities=all), init.plans those of a file"
            )


def check_missing_channels(plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> None:
    """Check that zeros of channels that these images lack stay zeros once they are normalised.

    Raises:
        ConfigError: one is normalised by what is not in the image; names channel and normalization.
    """
    schemes = PlansManager(plans).get_configuration(configuration).normalization_schemes
    for number, name in missing_channels(dataset_json).items():
        if schemes[number] not in BY_THE_IMAGE:
            raise ConfigError(
                f"task.channels=union: channel {name} is not among these images, and is normalised by "
                f"{schemes[number]}, which would make of its zeros what an image may hold; leave this centre out"
            )


@contextlib.contextmanager
def _positive_augmentation_processes() -> Iterator[None]:
    """Set ``nnUNet_n_proc_DA`` to 1 instead of 0: the planner takes its torch threads from it, and fails at 0."""
    configured = os.environ.get("nnUNet_n_proc_DA")
    if configured == "0":
        os.environ["nnUNet_n_proc_DA"] = "1"
    try:
        yield
    finally:
        if configured is not None:
            os.environ["nnUNet_n_proc_DA"] = configured
