"""The typed configuration of a run, checked once, before any work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import NodeName

Configuration = Literal["2d", "3d_fullres"]


class Config(BaseModel):
    """Base of all configuration groups: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CentreConfig(Config):
    """One centre of a dataset.

    Attributes:
        name: as it appears in tables.
        dataset: nnU-Net dataset id, name (``Dataset101_X``), or a folder.
        external: has no training cases; serves for testing only.
    """

    name: NodeName
    dataset: int | str
    external: bool = False


class DatasetConfig(Config):
    """Which images: group ``dataset``.

    Attributes:
        raw_folder: where dataset ids and names are looked up; None for the variable ``nnUNet_raw``.
        configuration: nnU-Net configuration to train.
        hd95_unit: ``mm`` by the image's spacing, ``pixels`` where it has none.
        generator: makes the dataset when it is not there (a Hydra ``_target_``), or None.
    """

    name: str
    configuration: Configuration
    hd95_unit: Literal["mm", "pixels"]
    raw_folder: str | None
    centres: list[CentreConfig] = Field(min_length=1)
    generator: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> DatasetConfig:
        names = [centre.name for centre in self.centres]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"centres: the name {twice[0]} is there twice")
        if all(centre.external for centre in self.centres):
            raise ValueError("centres: all are external; at least one must have training cases")
        return self


class StrategyConfig(Config):
    """How nodes work together: group ``strategy``.

    Attributes:
        fingerprint: plan from the ``local`` fingerprint, the ``federated`` one, or the ``pooled`` dataset's.
        aggregation: a Flower strategy (a Hydra ``_target_``).
    """

    name: str
    fingerprint: Literal["local", "federated", "pooled"]
    aggregation: dict[str, Any]


class TrainerConfig(Config):
    """What nnU-Net's trainer does in a run: group ``trainer``.

    Attributes:
        name: an ``nnUNetTrainer`` class that nnU-Net finds.
        epochs: epochs; with a federation also the number of rounds.
        iterations: training iterations an epoch.
        val_iterations: validation iterations an epoch.
        initial_lr: initial learning rate.
        weight_decay: of the optimizer.
        oversample_foreground: fraction of a batch's patches that must hold foreground.
    """

    name: str
    epochs: int = Field(ge=1)
    iterations: int = Field(ge=1)
    val_iterations: int = Field(ge=1)
    initial_lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    oversample_foreground: float = Field(ge=0, le=1)


class ModelConfig(Config):
    """How nnU-Net plans the network: group ``model``.

    Attributes:
        planner: an ``ExperimentPlanner`` class that nnU-Net finds.
        overrides: attributes of the planner to change, such as ``UNet_base_num_features``.
    """

    planner: str
    overrides: dict[str, Any] = {}


class GpuMemoryConfig(Config):
    """GPU memory that plans aim at: group ``gpu_memory``.

    Attributes:
        default: GB for every node that ``nodes`` does not name.
        nodes: node name to GB.
    """

    default: float = Field(gt=0)
    nodes: dict[str, float] = {}


class NodeConfig(Config):
    """How a node computes: group ``node``.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto`` is nnU-Net's own: float16 autocast on CUDA, float32 elsewhere.
        augmentation_workers: background processes for augmentation; 0 augments in the training process,
            which alone is reproducible.
        preprocessing_workers: processes for fingerprint and preprocessing; 1 works in the node's process.
        threads: threads of torch; 0 divides the machine's cores among the nodes that run at once.
        compile: ``torch.compile`` the network (CUDA only).
    """

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
    augmentation_workers: int = Field(ge=0)
    preprocessing_workers: int = Field(ge=1)
    threads: int = Field(ge=0)
    compile: bool


class FederationConfig(Config):
    """How server and nodes are brought together: group ``federation``.

    Attributes:
        grid: ``local`` runs server and nodes on this machine, without ports.
        max_parallel_nodes: nodes that compute at the same time; 0 for one a core (CPU) or one (GPU).
        timeout: seconds to wait for a round's replies; null waits for ever.
    """

    grid: Literal["local"]
    max_parallel_nodes: int = Field(ge=0)
    timeout: float | None = Field(gt=0)


class PathsConfig(Config):
    """Folders.

    Attributes:
        data: generated datasets.
        cache: fingerprints and preprocessed data, shared by runs.
        run: this run's folder.
    """

    data: Path
    cache: Path
    run: Path


class RunConfig(Config):
    """Everything a run depends on."""

    seed: int = Field(ge=0)
    fold: int = Field(ge=0, le=4)
    dataset: DatasetConfig
    strategy: StrategyConfig
    trainer: TrainerConfig
    model: ModelConfig
    gpu_memory: GpuMemoryConfig
    node: NodeConfig
    federation: FederationConfig
    logger: dict[str, Any]
    paths: PathsConfig

    @model_validator(mode="after")
    def _memory_targets_name_centres(self) -> RunConfig:
        names = {centre.name for centre in self.dataset.centres}
        unknown = sorted(set(self.gpu_memory.nodes) - names)
        if unknown:
            raise ValueError(
                f"gpu_memory.nodes: {unknown[0]} is no centre of {self.dataset.name} ({', '.join(sorted(names))})"
            )
        return self

    @property
    def training_centres(self) -> list[CentreConfig]:
        """Centres with training cases, in the order of the config."""
        return [centre for centre in self.dataset.centres if not centre.external]

    def gpu_memory_of(self, node: str) -> float:
        """Planning target of ``node`` in GB."""
        return self.gpu_memory.nodes.get(node, self.gpu_memory.default)


def read_config(cfg: DictConfig) -> RunConfig:
    """Resolve and check a composed Hydra config.

    Raises:
        ConfigError: names the key and what is wrong with its value.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    try:
        config = RunConfig.model_validate(container)
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None

    return config


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}"
    value = problem["input"]
    return (
        f"{key}={value}: {message}"
        if key and isinstance(value, str | int | float)
        else f"{key}: {message}".lstrip(": ")
    )
