"""From a fingerprint, GPU memory and the number of cases to nnU-Net's plans."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from fednnunet.config.groups import ModelConfig
from fednnunet.errors import ConfigError
from fednnunet.files import write_atomically
from fednnunet.planning.class_lookup import find_class


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
    folder = _write_fingerprint(dataset, fingerprint)
    planner = _build_planner(dataset, model, gpu_memory_gb)
    if num_training is not None:
        planner.dataset_json["numTraining"] = num_training
    plans_file = folder / f"{planner.plans_identifier}.json"
    plans_file.unlink(missing_ok=True)  # nnU-Net would keep configurations of an older file
    with _positive_augmentation_processes():
        planner.plan_experiment()
    return json.loads(plans_file.read_text())


def _write_fingerprint(dataset: str, fingerprint: dict[str, Any]) -> Path:
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


def import_plans(
    dataset: str, fingerprint: dict[str, Any], source: Path, node: str, channels: int, model: ModelConfig
) -> dict[str, Any]:
    """Use plans made elsewhere for ``dataset``, as ``nnUNetv2_move_plans_between_datasets`` does.

    Args:
        dataset: ``DatasetXXX_Name`` to train on.
        fingerprint: fingerprint of that dataset, stored beside the plans.
        source: nnU-Net's plans file, or a run's folder with the plans of ``node``.
        node: name of the node, for a run's folder and the error message.
        channels: number of input channels of the dataset.
        model: may give the plans another name.

    Raises:
        ConfigError: no such file, no plans of this nnU-Net, or plans for other images.
    """
    plans = _read_plans(source, node)
    known = len(plans["foreground_intensity_properties_per_channel"])
    if known != channels:
        raise ConfigError(f"init.plans={source} is for images of {known} channels; node {node} has {channels}")
    plans["dataset_name"] = dataset
    if model.plans_name is not None:
        plans["plans_name"] = model.plans_name
    folder = _write_fingerprint(dataset, fingerprint)
    raw = Path(os.environ["nnUNet_raw"]) / dataset / "dataset.json"
    write_atomically(folder / "dataset.json", raw.read_text())
    write_atomically(folder / f"{plans['plans_name']}.json", json.dumps(plans, indent=1))
    return plans


def _read_plans(source: Path, node: str) -> dict[str, Any]:
    path = source / "plans.json" if source.is_dir() else source
    try:
        plans = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"init.plans: there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ConfigError(f"init.plans: {path} is not JSON") from None
    if isinstance(plans, dict) and "configurations" not in plans:  # a run's: plans by node
        if node not in plans:
            raise ConfigError(
                f"init.plans: {path} has no plans of node {node}, only of {', '.join(plans)}; "
                f"give it a file of its own: init.plans={{{node}: …}}"
            )
        plans = plans[node]
    _check_version(plans, path)
    return plans


def _check_version(plans: Any, path: Path) -> None:
    """Check that the plans have the form that this nnU-Net writes.

    Raises:
        ConfigError: names the file and what is missing.
    """
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict) or "foreground_intensity_properties_per_channel" not in plans:
        raise ConfigError(f"init.plans: {path} are no plans of nnU-Net v2 (v1's plans.pkl cannot be used)")
    for name, configuration in configurations.items():
        if "inherits_from" not in configuration and "architecture" not in configuration:
            raise ConfigError(
                f"init.plans: {path} were made by another version of nnU-Net's planner ({name} has no architecture: "
                "nnU-Net before 2.5); plan anew with this version"
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
