"""The stages between description and training: plan, preprocess, build a fold's trainer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from fednnunet.datasets.splits import SPLITS_FILE, pooled_splits, splits_for_nnunet
from fednnunet.datasets.staging import raw_digest
from fednnunet.datasets.union_channels import ZEROS_WHERE_MISSING, learnt_to_miss
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold, PlanRequest
from fednnunet.files import write_atomically
from fednnunet.fingerprint.schema import DatasetFingerprint
from fednnunet.node.describe import NodeDataset
from fednnunet.node.distributed import Ranks
from fednnunet.node.settings import NodeSettings
from fednnunet.planning.imported import check_channel_order, import_plans
from fednnunet.planning.plans import check_intensities, check_missing_channels, make_plans
from fednnunet.preprocessing import REFERENCES, cache_key, preprocess
from fednnunet.training.cascade import copy_previous_stage
from fednnunet.training.final_checkpoint import find_checkpoint
from fednnunet.training.partial_channels import use_partial_channels
from fednnunet.training.partial_labels import use_partial_labels
from fednnunet.training.pretrained import load_pretrained
from fednnunet.training.trainer import build_network, build_nnunet_trainer, class_layers, find_trainer


def plan_network(dataset: NodeDataset, request: PlanRequest, settings: NodeSettings) -> dict[str, Any]:
    """Plans from the federated fingerprint or the node's own, or imported where ``init.plans`` names some.

    Raises:
        ConfigError: nnU-Net plans no such configuration for these images; the node has no foreground, or lacks a
            channel, and its images are normalised by that; it is to train layers of weights that it is not given; or it
            cannot keep its limit of epsilon.
        ProtocolError: the federated fingerprint is malformed.
    """
    config, name, raw = settings.config, settings.name, dataset.raw
    config.privacy.check_limit()
    config.check_start(name)
    if request.fingerprint is None:
        fingerprint = dataset.fingerprint()
    else:
        fingerprint = DatasetFingerprint.parse(request.fingerprint, "the server").to_dict()
    given = config.init.plans_of(name)
    if given is not None:
        source, channels = given.expanduser(), len(raw.channel_names)
        plans = import_plans(raw.name, fingerprint, source, name, channels, config.model, config.configuration)
    else:
        plans = make_plans(raw.name, fingerprint, config.model, config.gpu_memory_of(name), request.num_training)
    configuration = config.configuration
    if configuration not in plans["configurations"]:
        raise ConfigError(
            f"configuration={configuration}: nnU-Net plans only {', '.join(plans['configurations'])} for these images"
        )
    if given is not None and config.task.channels == "union":
        check_channel_order(plans, configuration, list(raw.channel_names.values()), given)
    check_missing_channels(plans, configuration, raw.dataset_json)
    check_intensities(plans, configuration, raw.channel_names)
    return plans


def planned_network(plans: dict[str, Any], dataset: NodeDataset, settings: NodeSettings) -> nn.Module:
    """The network that ``plans`` describe for this node's task."""
    config = settings.config
    trainer_class = find_trainer(config.trainer.class_)
    return build_network(trainer_class, PlansManager(plans), config.configuration, dataset.raw.dataset_json)


def planned_heads(plans: dict[str, Any], dataset: NodeDataset, settings: NodeSettings) -> list[str]:
    """Layers of the planned network whose first axis are classes.

    Raises:
        ConfigError: there is none, or classes are another axis of one.
    """
    config = settings.config
    trainer_class = find_trainer(config.trainer.class_)
    return class_layers(trainer_class, PlansManager(plans), config.configuration, dataset.raw.dataset_json)


def preprocess_cases(dataset: NodeDataset, plans: dict[str, Any], settings: NodeSettings) -> None:
    """Write nnU-Net's splits and preprocess all cases; sets ``nnUNet_preprocessed`` to where they lie."""
    config, raw = settings.config, dataset.raw
    digest, configuration = raw_digest(raw), config.configuration
    planned = settings.folder / "nnUNet_preprocessed" / raw.name
    folds = splits_for_nnunet(
        pooled_splits(dataset.splits) if dataset.is_pooled else next(iter(dataset.splits.values()))
    )
    write_atomically(planned / SPLITS_FILE, json.dumps(folds, indent=1))
    entry = dataset.cache_folder(digest) / cache_key(digest, plans, configuration, folds)
    cache = preprocess(raw, planned, plans, configuration, entry, config.compute.preprocessing_workers)
    _link(planned / REFERENCES, cache / raw.name / REFERENCES)
    os.environ["nnUNet_preprocessed"] = str(cache)


def build_fold_trainer(
    fold: Fold,
    dataset: NodeDataset,
    plans: dict[str, Any],
    settings: NodeSettings,
    device: torch.device,
    ranks: Ranks,
) -> nnUNetTrainer:
    """Build the trainer of ``fold``, as if it were the only one: from the node's seed, or pretrained."""
    config, trainer_settings = settings.config, settings.config.trainer
    configuration = config.configuration
    dataset_json = {key: value for key, value in dataset.raw.dataset_json.items() if key != "dataset"}
    if config.task.channels == "union":
        dataset_json[ZEROS_WHERE_MISSING] = learnt_to_miss(dataset_json, config.task.channel_drop)
    ranks.build(plans, configuration, fold, dataset_json, settings.seed)
    L.seed_everything(settings.seed, verbose=False)
    trainer = build_nnunet_trainer(
        plans, configuration, fold, dataset_json, trainer_settings, device, config.compute.precision
    )
    if config.task.labels == "union":
        use_partial_labels(trainer, config.task)
    if config.task.channels == "union":
        use_partial_channels(trainer, config.task.channel_drop, settings.seed)
    source = config.init.weights_of(settings.name)
    if source is not None:
        load_pretrained(trainer, find_checkpoint(source, settings.name, fold))
    if config.init.previous_stage is not None and trainer.is_cascaded:
        identifiers = [case.identifier for case in dataset.cases()]
        united = config.task.labels == "union"
        copy_previous_stage(trainer, settings.name, config.init.previous_stage, identifiers, united)
    return trainer


def _link(link: Path, target: Path) -> None:
    """Let ``link``, where nnU-Net's tools look, stand for ``target`` in the cache."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)
