"""Weights to start from: an nnU-Net checkpoint, or a finished run of this framework."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ConfigError
from fednnunet.training.checkpoint_types import NUMBERS
from fednnunet.training.network_state import SEGMENTATION_PART, unwrap

log = logging.getLogger(__name__)

SEGMENTATION_LAYERS = f".{SEGMENTATION_PART}."
"""Layers that are never loaded, as in ``nnunetv2.run.load_pretrained_weights``: another task has other labels."""
NAMED_MISMATCHES = 3


def load_pretrained(trainer: nnUNetTrainer, path: Path) -> None:
    """Load every layer except the segmentation heads, by nnU-Net's rule: all of them must exist and fit.

    Only tensors and numbers are read from the file; nothing in it is executed.

    Raises:
        ConfigError: not an nnU-Net checkpoint, of another configuration, of the same channels in another order, or
            layers that do not fit, with the first of them and what to do.
    """
    checkpoint = _read(path)
    network = unwrap(trainer.network)
    ours, theirs = network.state_dict(), _without_prefixes(checkpoint["network_weights"])
    origin = _origin(checkpoint)
    needed = [name for name in ours if SEGMENTATION_LAYERS not in name]
    misfits = [problem for name in needed if (problem := _misfit(name, ours[name], theirs.get(name)))]
    if misfits:
        named = "; ".join(misfits[:NAMED_MISMATCHES]) + (" …" if len(misfits) > NAMED_MISMATCHES else "")
        raise ConfigError(
            f"init.weights={path}{origin}: {len(misfits)} of {len(needed)} layers do not fit the planned "
            f"network: {named}. Train with the plans of that model: init.plans=<its plans.json>"
        )
    _check_channels(checkpoint, trainer.dataset_json, f"init.weights={path}{origin}")
    network.load_state_dict(ours | {name: theirs[name] for name in needed})
    log.info("started from %s%s: %d layers, segmentation heads anew", path, origin, len(needed))


def _read(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(NUMBERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"init.weights: there is no file {path}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"init.weights={path} cannot be read as a checkpoint: {cause[:200]}") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise ConfigError(f"init.weights={path} is not a checkpoint of nnU-Net: it has no network_weights")
    return checkpoint


def _check_channels(checkpoint: Mapping[str, Any], dataset_json: Mapping[str, Any], where: str) -> None:
    """Check that the first layer's channels are not these in another order; others are taken as they come."""
    described = (checkpoint.get("init_args") or {}).get("dataset_json") or {}
    names = described.get("channel_names") or described.get("modality") or {}
    theirs, ours = (list(map(str, channels.values())) for channels in (names, dataset_json["channel_names"]))
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise ConfigError(
            f"{where} takes the channels {', '.join(theirs)}, this run {', '.join(ours)}: its first layer would see "
            "one for another; train it with channels in this order (task.channels=union sorts them by name)"
        )


def _origin(checkpoint: Mapping[str, Any]) -> str:
    """Origin of a checkpoint, for messages."""
    arguments = checkpoint.get("init_args") or {}
    plans = arguments.get("plans") or {}
    parts = [plans.get("dataset_name"), checkpoint.get("trainer_name"), arguments.get("configuration")]
    known = ", ".join(str(part) for part in parts if part)
    return f" ({known})" if known else ""


def _without_prefixes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in weights.items()}


def _misfit(name: str, ours: torch.Tensor, theirs: torch.Tensor | None) -> str | None:
    if theirs is None:
        return f"{name} is missing"
    if ours.shape != theirs.shape:
        return f"{name} is {tuple(theirs.shape)} there and {tuple(ours.shape)} here"
    return None
