"""From the configuration to the settings of server and nodes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.config.run import RunConfig
from fednnunet.datasets.label_names import with_common_names
from fednnunet.datasets.raw import find_dataset, read_dataset
from fednnunet.datasets.splits import splits_of
from fednnunet.errors import ConfigError, FednnUNetError, one_line
from fednnunet.exchange.messages import PersonalTraining
from fednnunet.launch.placement import Placement, place_on_cpu, place_on_gpus
from fednnunet.launch.run_folder import run_id
from fednnunet.node.gpus import find_gpus
from fednnunet.node.settings import NodeSettings, WorkerPlan
from fednnunet.processes import cores
from fednnunet.server.session import ServerSettings
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.no_exchange import NoExchange
from fednnunet.server.strategy.secure_asym_fedavg import SecureAsymFedAvg

log = logging.getLogger(__name__)


def server_settings(config: RunConfig) -> ServerSettings:
    """Settings of the server."""
    sums = config.privacy.secure_sums
    settings = ServerSettings(
        fingerprint=config.fingerprint.intensity if config.strategy.plan_from == "federated" else None,
        geometry=config.fingerprint.geometry,
        needed_intensities=config.fingerprint.intensities == "needed",
        epsilon=config.fingerprint.epsilon,
        folds=config.folds,
        timeout=config.federation.reply_timeout_s,
        dtype=config.exchange.dtype,
        cross_centre=config.evaluation.cross_centre,
        local_epochs=config.strategy.local_epochs,
        heterogeneous_tasks=config.strategy.heterogeneous_tasks,
        labels=config.task.labels,
        channels=config.task.channels,
        min_nodes=config.federation.min_nodes,
        expected_nodes=config.federation.expected_nodes,
        find_duplicates=config.fingerprint.find_duplicates,
        secure_run=None if sums is None else run_id(config.paths.run),
        colluding=0 if sums is None else sums.colluding,
        train_layers=config.trainer.train_layers,
        accept_useless_noise=any(noise.accept_useless for noise in (config.privacy.case, config.privacy.node) if noise),
        personal=personal_training(config),
    )
    if config.on_single_machine:
        return settings
    taking_part = (*config.training_centres, *config.external_centres)
    return dataclasses.replace(
        settings,
        expected_nodes=config.federation.expected_nodes or len(taking_part),
        wait_for_nodes=True,
        run=run_id(config.paths.run),
        shared_config=config.shared.model_dump(mode="json", by_alias=True),
        centres={centre.name: centre.external for centre in taking_part},
    )


def build_strategy(config: RunConfig) -> Strategy:
    """The strategy that the configuration names by its import path.

    Raises:
        ConfigError: there is none at the path, or it does not take these parameters.
    """
    sums, protection = config.privacy.secure_sums, {}
    if sums is not None and config.strategy.aggregation["_target_"] == class_path(AsymFedAvg):
        protection = {
            "_target_": class_path(SecureAsymFedAvg),
            "colluding": sums.colluding,
            "min_group": sums.min_group,
            "limit": sums.limit,
            "max_update_norm": sums.max_update_norm,
        }
    try:
        strategy = instantiate(config.strategy.aggregation, **protection)
    except InstantiationException as error:
        raise ConfigError(f"strategy.aggregation: {one_line(str(error.__cause__ or error))}") from error
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy.aggregation: {type(strategy).__name__} is not a {Strategy.__module__}.Strategy")
    return strategy


def averages_nothing(config: RunConfig) -> bool:
    """Whether nodes train alone, as with ``strategy=local``, so that there is nothing to fine-tune or be tied to."""
    return config.strategy.aggregation.get("_target_") == class_path(NoExchange)


def personal_training(config: RunConfig) -> PersonalTraining | None:
    """How nodes come to models of their own; None where they have one model each."""
    return None if averages_nothing(config) else config.strategy.personal


def class_path(cls: type) -> str:
    """Import path of a class, as Hydra's ``_target_`` names it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def prepare_centres(config: RunConfig) -> dict[str, Path]:
    """Raw folder of every centre; a generated dataset is made when it does not exist.

    Raises:
        FednnUNetError: a folder is missing, empty or not nnU-Net's raw format, or lacks a label that is to be renamed.
    """
    raw_folder = Path(config.dataset.raw_folder) if config.dataset.raw_folder else None
    if config.dataset.generator is not None:
        try:
            instantiate(config.dataset.generator, folder=raw_folder, _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, FednnUNetError):  # Hydra wraps the generator's error
                raise error.__cause__ from None
            raise
    folders = {}
    for centre in config.dataset.centres:
        assert centre.dataset is not None, "checked with the configuration"
        folder = find_dataset(centre.dataset, raw_folder, centre.name, config.dataset.origin)
        dataset = read_dataset(folder, centre.name, external=centre.external)
        with_common_names(dataset, config.task.rename_labels.get(centre.name, {}), centre.name)
        if not centre.external:
            splits_of(dataset, centre.name, config.folds)
        folders[centre.name] = folder.resolve()
    return folders


def node_settings(config: RunConfig, folders: Mapping[str, Path]) -> list[NodeSettings]:
    """One node per centre; for the pooled baseline, one that holds all training centres."""
    external = {centre.name: centre.external for centre in config.dataset.centres}
    taking_part = {centre.name for centre in (*config.training_centres, *config.external_centres)}
    nodes = {name: {name: folder} for name, folder in folders.items() if name in taking_part}
    if len(nodes) < len(folders) and not config.keeps_models:
        log.warning("external centres are left out: they have no 3d_lowres segmentations for the cascade to refine")
    if config.pools_cases:
        pooled = {name: folder for name, folder in folders.items() if not external[name]}
        nodes = {POOLED_NODE: pooled} | {name: data for name, data in nodes.items() if external[name]}
    threads = config.compute.threads or max(1, cores() // len(place_nodes(config, list(nodes))))
    return [
        NodeSettings(
            name=name,
            folder=config.paths.run.resolve() / "nodes" / name,
            datasets=datasets,
            external=external.get(name, False),
            config=config,
            threads=threads,
            same_machine=True,
            image_headers=config.dataset.image_headers,
            privacy_ledger=config.paths.cache.resolve() / "privacy" / f"{name}.jsonl",
        )
        for name, datasets in nodes.items()
    ]


def worker_plans(config: RunConfig, nodes: Sequence[NodeSettings]) -> list[WorkerPlan]:
    """Share the nodes out among worker processes, which keep them for the whole run.

    Raises:
        ConfigError: nodes cannot be placed as the configuration asks; or nodes of several devices each are to share a
            worker, and their process group is the process's.
    """
    numbers = {settings.name: number for number, settings in enumerate(nodes, start=1)}
    settings_of = {settings.name: settings for settings in nodes}
    plans = []
    for place in place_nodes(config, list(numbers)):
        if config.compute.num_devices > 1 and len(place.nodes) > 1:
            workers = config.federation.workers
            remedy = "leave federation.workers=0" if workers else "there are too few GPUs for all; lower num_devices"
            raise ConfigError(
                f"federation.workers={workers}: nodes that train on compute.num_devices={config.compute.num_devices} "
                f"cannot share a worker, as {' and '.join(place.nodes[:2])} would; {remedy}"
            )
        plans.append(
            WorkerPlan(
                {numbers[name]: settings_of[name] for name in place.nodes},
                cache_bytes=int(config.federation.cache_gib * 2**30),
                gpus=tuple(gpu.uuid for gpu in place.gpus) or None,
                parks=place.parks,
            )
        )
    return plans


def place_nodes(config: RunConfig, names: Sequence[str]) -> list[Placement]:
    """Worker processes and the nodes of each: on the visible GPUs as many as fit, on the CPU one per core.

    Raises:
        ConfigError: the configuration asks for GPUs that are not there.
    """
    compute, workers = config.compute, config.federation.workers
    if compute.device not in ("cpu", "mps"):
        gpus = find_gpus()
        if gpus or compute.gpus != "auto":
            return place_on_gpus({name: config.gpu_memory_of(name) for name in names}, gpus, compute, workers)
    return place_on_cpu(names, workers or (len(names) if compute.num_devices > 1 else _at_once(config)))


def parallel_nodes(config: RunConfig, workers: Sequence[WorkerPlan]) -> int:
    """Workers that compute at the same time."""
    as_placed = config.federation.workers or workers[0].gpus is not None
    return len(workers) if as_placed else min(len(workers), _at_once(config))


def _at_once(config: RunConfig) -> int:
    """Nodes that compute at the same time where nothing is known of GPUs: one per core, on a GPU one."""
    device = config.compute.device
    has_gpu = device in ("cuda", "mps") or (device == "auto" and Path("/dev/nvidia0").exists())
    return 1 if has_gpu or config.pools_cases else min(len(config.training_centres), cores())
