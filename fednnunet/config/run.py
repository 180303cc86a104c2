"""The typed configuration of a run, checked once, before any work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, PositiveFloat, ValidationError, model_validator

from fednnunet.config.shared import Config, Folds, SharedDataset, SharedModel, SharedRunConfig, SharedTrainer
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import ENSEMBLE, ExchangeDtype, Fold, NodeName

POOLED_NODE = "centralized"
"""Name of the one node that holds all centres' cases."""


class CentreConfig(Config):
    """One centre of a dataset.

    Attributes:
        name: as it appears in tables.
        dataset: nnU-Net dataset id, name (``Dataset101_X``), or a folder; not looked at where nodes are other machines,
            which know their own.
        external: has no training cases; serves for testing only.
        studies: how many it has in the paper; `fednnunet convert` compares.
    """

    name: NodeName
    dataset: int | str | None = None
    external: bool = False
    studies: int | None = Field(default=None, ge=1)


class DatasetConfig(SharedDataset):
    """Which images: group ``dataset``.

    Attributes:
        raw_folder: where dataset ids and names are looked up; None for the variable ``nnUNet_raw``.
        centres: whose images they are.
        labels: label name to value, where `fednnunet convert` writes them; None where ``dataset.json`` alone says.
        generator: makes the dataset when it is not there (a Hydra ``_target_``), or None.
    """

    raw_folder: str | None
    labels: dict[str, int] | None = None
    centres: list[CentreConfig] = Field(min_length=1)
    generator: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> DatasetConfig:
        names = [centre.name for centre in self.centres]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"centres: the name {twice[0]} is there twice")
        for taken in (POOLED_NODE, ENSEMBLE):
            if taken in names:
                raise ValueError(f"centres: {taken} can be no centre's name, it stands for a model in the tables")
        if all(centre.external for centre in self.centres):
            raise ValueError("centres: all are external; at least one must have training cases")
        return self


class FingerprintConfig(Config):
    """How the federated fingerprint is made: key ``fingerprint``; matters to strategies that plan from it.

    Attributes:
        intensity: ``histogram``: as nnU-Net would from the pooled images; ``weighted_mean``: the original's rule.
        share: ``full``, or ``quantised``: what a node tells is rounded to a grid that hides single cases.
    """

    intensity: Literal["histogram", "weighted_mean"]
    share: Literal["full", "quantised"]

    @model_validator(mode="after")
    def _possible(self) -> FingerprintConfig:
        if self.share == "quantised" and self.intensity == "weighted_mean":
            raise ValueError("share=quantised needs intensity=histogram")
        return self


class StrategyConfig(Config):
    """How nodes work together: group ``strategy``.

    Attributes:
        fingerprint: plan from the ``local`` fingerprint, the ``federated`` one, or the ``pooled`` dataset's.
        keep_local: parts of layer names; layers with one of them are not exchanged.
        local_epochs: epochs that every node trains between two aggregations.
        fraction_train: of the nodes that train in a round.
        heterogeneous_tasks: nodes may differ in labels and channels; what matches of their networks is shared.
        aggregation: a Flower strategy (a Hydra ``_target_``).
    """

    name: str
    fingerprint: Literal["local", "federated", "pooled"]
    keep_local: list[str] = Field(default=[])
    local_epochs: int = Field(default=1, ge=1)
    fraction_train: float = Field(default=1.0, gt=0, le=1)
    heterogeneous_tasks: bool = False
    aggregation: dict[str, Any]

    @model_validator(mode="after")
    def _tasks_have_own_plans(self) -> StrategyConfig:
        if self.heterogeneous_tasks and self.fingerprint != "local":
            raise ValueError("heterogeneous_tasks=true needs plans of each node's own: strategy=asym (or local)")
        return self


class TrainerConfig(SharedTrainer):
    """What nnU-Net's trainer does in a run: group ``trainer``.

    Attributes:
        pretrained: checkpoint to start from, for all nodes or by node name: nnU-Net's ``.pth``, or the folder of a
            finished run, whose checkpoint of the same node is taken.
        previous_stage: folder of finished ``3d_lowres`` runs, which ``3d_cascade_fullres`` takes as input.
    """

    pretrained: Path | dict[str, Path] | None = None
    previous_stage: Path | None = None

    def pretrained_of(self, node: str) -> Path | None:
        """Checkpoint or run folder that ``node`` starts from, if any."""
        return self.pretrained.get(node) if isinstance(self.pretrained, dict) else self.pretrained


class ModelConfig(SharedModel):
    """How nnU-Net plans the network and preprocesses for it: group ``model``.

    Attributes:
        plans: a plans file to use instead of planning, for all nodes or by node name; such as those of a model
            whose weights are the start (``trainer.pretrained``).
    """

    plans: Path | dict[str, Path] | None = None

    def plans_of(self, node: str) -> Path | None:
        """Plans file or run folder of ``node``, if it shall not plan."""
        return self.plans.get(node) if isinstance(self.plans, dict) else self.plans


class GpuMemoryConfig(Config):
    """GPU memory that plans aim at: group ``gpu_memory``.

    Attributes:
        default: GB for every node that ``nodes`` does not name; None for what the planner was made for.
        nodes: node name to GB.
        cap: let no worker take more of a CUDA GPU than its target, as if its GPU were that small.
    """

    default: PositiveFloat | None
    nodes: dict[str, PositiveFloat] = Field(default={})
    cap: bool = True


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
        devices: GPUs (processes, on the CPU) that share each batch, by distributed data parallel.
    """

    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: int = Field(default=1, ge=1)
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
    augmentation_workers: int = Field(ge=0)
    preprocessing_workers: int = Field(ge=1)
    threads: int = Field(ge=0)
    compile: bool


class FederationConfig(Config):
    """How server and nodes are brought together: group ``federation``.

    Attributes:
        grid: ``local`` runs server and nodes on this machine, without ports; ``deployment`` is the server of nodes
            on other machines.
        server: folder of the server's state (``fednnunet server up``), for ``deployment``.
        max_parallel_nodes: nodes that compute at the same time; 0 for one per core (CPU) or one (GPU).
        timeout: seconds to wait for a round's replies; null waits for ever.
        min_nodes: go on without nodes that fail or do not reply while so many are in; null needs all.
        nodes: that the federation is to have; its first stage waits for so many, ``timeout`` seconds at most. Null
            means one per centre.
        find_duplicates: compare salted digests of the nodes' images, and warn of those that two nodes hold.
    """

    grid: Literal["local", "deployment"]
    server: Path | None = None
    max_parallel_nodes: int = Field(ge=0)
    timeout: float | None = Field(gt=0)
    min_nodes: int | None = Field(default=None, ge=1)
    nodes: int | None = Field(default=None, ge=1)
    find_duplicates: bool = False

    @model_validator(mode="after")
    def _enough_nodes(self) -> FederationConfig:
        if self.nodes is not None and self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes={self.min_nodes} is more than nodes={self.nodes}; lower it, or raise nodes")
        return self


class ExchangeConfig(Config):
    """How layers travel between nodes and server: key ``exchange``.

    Attributes:
        dtype: that they are rounded to, with error feedback; ``float32`` sends them as they are.
    """

    dtype: ExchangeDtype


class EvaluationConfig(Config):
    """What is scored after training: key ``evaluation``.

    Attributes:
        cross_centre: score every node's model on every other node's held-out cases, too (paper, Fig. 4).
    """

    cross_centre: bool


class CachePaths(Config):
    """Folders of a node.

    Attributes:
        cache: fingerprints and preprocessed data, shared by runs.
    """

    cache: Path


class PathsConfig(CachePaths):
    """Folders.

    Attributes:
        data: generated datasets.
        run: this run's folder.
    """

    data: Path
    run: Path


class NodeRunConfig(Config):
    """What a node's part of a run depends on."""

    seed: int = Field(ge=0)
    fold: Folds
    dataset: SharedDataset
    fingerprint: FingerprintConfig
    trainer: TrainerConfig
    model: ModelConfig
    gpu_memory: GpuMemoryConfig
    node: NodeConfig
    paths: CachePaths

    @property
    def folds(self) -> list[Fold]:
        """Folds to train, one after another."""
        return self.fold if isinstance(self.fold, list) else [self.fold]

    def gpu_memory_of(self, node: str) -> float | None:
        """Planning target of ``node`` in GB; None leaves it to the planner."""
        return self.gpu_memory.nodes.get(node, self.gpu_memory.default)


class RunConfig(NodeRunConfig):
    """Everything a run depends on.

    Attributes:
        logger: trackers (Hydra ``_target_``) by name.
    """

    dataset: DatasetConfig
    strategy: StrategyConfig
    exchange: ExchangeConfig
    evaluation: EvaluationConfig
    federation: FederationConfig
    logger: dict[str, dict[str, Any]]
    paths: PathsConfig

    @model_validator(mode="after")
    def _nodes_are_centres(self) -> RunConfig:
        names = {centre.name for centre in self.dataset.centres} | {POOLED_NODE}
        for key, by_node in (
            ("gpu_memory.nodes", self.gpu_memory.nodes),
            ("trainer.pretrained", self.trainer.pretrained),
            ("model.plans", self.model.plans),
        ):
            unknown = sorted(set(by_node) - names) if isinstance(by_node, dict) else []
            if unknown:
                centres = ", ".join(sorted(names - {POOLED_NODE}))
                raise ValueError(f"{key}: {unknown[0]} is no centre of {self.dataset.name} ({centres})")
        return self

    @model_validator(mode="after")
    def _can_be_deployed(self) -> RunConfig:
        """What nodes on other machines need, and what only they can say."""
        if self.federation.grid == "local":
            for centre in self.dataset.centres:
                if centre.dataset is None:
                    raise ValueError(f"dataset.centres: {centre.name} has no dataset: an id, a name, or a folder")
            return self
        if self.federation.server is None:
            raise ValueError("federation.server: name the folder of the server's state (fednnunet server up --state …)")
        if self.strategy.fingerprint == "pooled":
            raise ValueError(f"strategy={self.strategy.name} pools all images; on several machines they stay apart")
        for key, given in (
            ("trainer.pretrained", self.trainer.pretrained),
            ("trainer.previous_stage", self.trainer.previous_stage),
            ("model.plans", self.model.plans),
            ("gpu_memory.nodes", self.gpu_memory.nodes),
        ):
            if given:
                raise ValueError(f"{key}: nodes on other machines say this in their own node.yaml, not the server")
        return self

    @model_validator(mode="after")
    def _nodes_are_those_started(self) -> RunConfig:
        training = 1 if self.strategy.fingerprint == "pooled" else len(self.training_centres)
        started = training + len(self.external_centres)
        if self.federation.grid == "deployment":
            started = len(self.dataset.centres)
            if (self.federation.nodes or 0) > started:
                raise ValueError(f"federation.nodes={self.federation.nodes}: dataset.centres names {started}")
        elif self.federation.nodes not in (None, started):
            raise ValueError(
                f"federation.nodes={self.federation.nodes}: on this machine {started} nodes are started, one per "
                "centre; name other dataset.centres, or leave federation.nodes=null"
            )
        return self

    @model_validator(mode="after")
    def _cascade_has_its_input(self) -> RunConfig:
        cascade = self.dataset.configuration == "3d_cascade_fullres"
        if cascade and self.trainer.previous_stage is None and self.federation.grid == "local":
            raise ValueError(
                "dataset.configuration=3d_cascade_fullres refines the segmentations of 3d_lowres; train that first, "
                "and name the folder of its runs: trainer.previous_stage=…"
            )
        if cascade and self.evaluation.cross_centre:
            raise ValueError(
                "evaluation.cross_centre=true is not for 3d_cascade_fullres: other nodes lack the 3d_lowres "
                "segmentations that its models refine"
            )
        return self

    @property
    def training_centres(self) -> list[CentreConfig]:
        """Centres with training cases, in the order of the config."""
        return [centre for centre in self.dataset.centres if not centre.external]

    @property
    def external_centres(self) -> list[CentreConfig]:
        """Centres that only test; the cascade has none: it needs segmentations that they do not have."""
        cascade = self.dataset.configuration == "3d_cascade_fullres"
        return [centre for centre in self.dataset.centres if centre.external and not cascade]

    @property
    def task(self) -> SharedRunConfig:
        """What nodes on other machines are told of this run."""
        return SharedRunConfig(
            seed=self.seed,
            fold=self.fold,
            dataset=SharedDataset(**self.dataset.model_dump(include=set(SharedDataset.model_fields))),
            share=self.fingerprint.share,
            trainer=SharedTrainer(**self.trainer.model_dump(include=set(SharedTrainer.model_fields))),
            model=SharedModel(**self.model.model_dump(include=set(SharedModel.model_fields))),
            gpu_memory=self.gpu_memory.default,
            cap_memory=self.gpu_memory.cap,
        )


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
