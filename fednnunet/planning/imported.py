"""Plans that were made elsewhere, by this version of nnU-Net or an older one (``init.plans``)."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.config.groups import ModelConfig
from fednnunet.errors import ConfigError
from fednnunet.files import write_atomically
from fednnunet.planning.plans import write_fingerprint

INTENSITIES = "foreground_intensity_properties_per_channel"
OLDER_INTENSITIES = "foreground_intensity_properties_by_modality"
"""Name of the same before nnU-Net 2.0; ``PlansManager`` takes it, too."""
OTHER_FILES = {
    ("channel_names", "labels"): "a dataset.json",
    ("modality", "labels"): "a dataset.json",
    ("spacings", "shapes_after_crop"): "a fingerprint",
    ("strategy", "num_training"): "a run.json; name the run's folder",
    ("train", "val"): "a splits_final.json",
}
"""Fields by which files that lie beside plans are recognised."""
NEEDED = ("plans_name", "image_reader_writer", "transpose_forward", "transpose_backward", INTENSITIES)
NEEDED_OF_CONFIGURATION = (
    *("data_identifier", "preprocessor_name", "spacing", "patch_size", "batch_size", "batch_dice", "architecture"),
    *("normalization_schemes", "use_mask_for_norm"),
    *(f"resampling_fn_{what}{end}" for what in ("data", "seg", "probabilities") for end in ("", "_kwargs")),
)
"""What nnU-Net reads of plans, and of the configuration that is trained."""


def import_plans(
    dataset: str,
    fingerprint: dict[str, Any],
    source: Path,
    node: str,
    channels: int,
    model: ModelConfig,
    configuration: str,
) -> dict[str, Any]:
    """Use plans made elsewhere for ``dataset``, as ``nnUNetv2_move_plans_between_datasets`` does.

    Args:
        dataset: ``DatasetXXX_Name`` to train on.
        fingerprint: fingerprint of that dataset, stored beside the plans.
        source: nnU-Net's plans file, or a run's folder with the plans of ``node``.
        node: name of the node, for a run's folder and the error message.
        channels: number of input channels of the dataset.
        model: may give the plans another name.
        configuration: nnU-Net's configuration that will be trained.

    Raises:
        ConfigError: no such file, no plans that this nnU-Net takes, or plans for other images.
    """
    plans = _present(_read_plans(source, node), configuration, source)
    schemes = plans["configurations"].get(configuration, {}).get("normalization_schemes", [None] * channels)
    for known in (len(plans[INTENSITIES]), len(schemes)):
        if known != channels:
            raise ConfigError(f"init.plans={source} is for images of {known} channels; node {node} has {channels}")
    plans["dataset_name"] = dataset
    if model.plans_name is not None:
        plans["plans_name"] = model.plans_name
    folder = write_fingerprint(dataset, fingerprint)
    raw = Path(os.environ["nnUNet_raw"]) / dataset / "dataset.json"
    write_atomically(folder / "dataset.json", raw.read_text())
    write_atomically(folder / f"{plans['plans_name']}.json", json.dumps(plans, indent=1))
    return plans


def check_channel_order(plans: dict[str, Any], configuration: str, names: Sequence[str], source: Path) -> None:
    """Check that plans made elsewhere do not normalise these channels as if they were in another order.

    Raises:
        ConfigError: they have nnU-Net's normalizations for channels of these names, and other ones in their places.
    """
    theirs = list(PlansManager(plans).get_configuration(configuration).normalization_schemes)
    ours = [get_normalization_scheme(name).__name__ for name in names]
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise ConfigError(
            f"init.plans={source} normalises channels by {', '.join(theirs)}, but those of this run, "
            f"{', '.join(names)}, need {', '.join(ours)}: they were made for another order; plan anew"
        )


def _read_plans(source: Path, node: str) -> dict[str, Any]:
    path = source / "plans.json" if source.is_dir() else source
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        found = ", ".join(sorted(other.name for other in source.glob("*Plans*.json"))) if source.is_dir() else ""
        advice = f"; name one of the files in the folder: {found}" if found else ""
        raise ConfigError(f"init.plans: there is no file {path}{advice}") from None
    try:
        plans = json.loads(content.decode("utf-8"))
    except ValueError:
        is_checkpoint = content.startswith(b"PK") or path.suffix == ".pth"
        found = "is a checkpoint, for init.weights" if is_checkpoint else "is not JSON"
        raise ConfigError(f"init.plans: {path} {found}; plans are a file such as nnUNetPlans.json") from None
    if isinstance(plans, dict) and plans and all(_are_plans(of_node) for of_node in plans.values()):  # a run's
        if node not in plans:
            raise ConfigError(
                f"init.plans: {path} has no plans of node {node}, only of {', '.join(plans)}; "
                f"give it a file of its own: init.plans={{{node}: …}}"
            )
        plans = plans[node]
    if not _are_plans(plans):
        what = _recognise(plans)
        raise ConfigError(
            f"init.plans: {path} is {what}"
            if what
            else f"init.plans: {path} are no plans of nnU-Net v2 (v1's plans.pkl cannot be used)"
        )
    return plans


def _are_plans(content: Any) -> bool:
    configurations = content.get("configurations") if isinstance(content, dict) else None
    return (
        isinstance(configurations, dict)
        and all(isinstance(configuration, dict) for configuration in configurations.values())
        and any(isinstance(content.get(name), dict) for name in (INTENSITIES, OLDER_INTENSITIES))
    )


def _recognise(content: Any) -> str | None:
    """What a JSON file is instead of plans, if it is a file that lies beside plans."""
    first = content[0] if isinstance(content, list) and content else content
    for fields, name in OTHER_FILES.items():
        if isinstance(first, dict) and set(fields) <= set(first):
            return f"{name}, not plans such as nnUNetPlans.json"
    return None


def _present(plans: dict[str, Any], configuration: str, source: Path) -> dict[str, Any]:
    """The plans in the form that this nnU-Net writes.

    nnU-Net before 2.5 named no architecture; ``ConfigurationManager`` makes it from the older fields.

    Raises:
        ConfigError: it cannot make that of ``configuration``, or a field is missing that it reads.
    """
    present = copy.deepcopy(plans)
    if older := present.pop(OLDER_INTENSITIES, None):
        present.setdefault(INTENSITIES, older)
    lacking = [field for field in NEEDED if field not in present]
    if lacking:
        raise ConfigError(f"init.plans={source} lacks {lacking[0]}: these are not whole plans of nnU-Net v2; plan anew")
    manager = PlansManager(plans)
    for name in plans["configurations"]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "Detected old nnU-Net plans format"
                whole = manager.get_configuration(name).configuration
        except (KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
            if name == configuration:
                what = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
                raise ConfigError(
                    f"init.plans={source}: nnU-Net cannot take configuration {name}: {what}; plan anew"
                ) from None
            continue
        lacking = [field for field in NEEDED_OF_CONFIGURATION if field not in whole]
        if name == configuration and lacking:
            raise ConfigError(
                f"init.plans={source}: nnU-Net cannot take configuration {name}: it lacks {lacking[0]}; plan anew"
            )
        if not _names_architecture(plans, name):
            whole.pop("inherits_from", None)
            present["configurations"][name] = whole
    return present


def _names_architecture(plans: dict[str, Any], name: str) -> bool:
    """Whether the configuration, or one that it inherits from, has an architecture."""
    configuration = plans["configurations"][name]
    parent = configuration.get("inherits_from")
    return "architecture" in configuration or (parent is not None and _names_architecture(plans, parent))
