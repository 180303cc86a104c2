"""The typed configuration of a run, checked once, before any work starts."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError, model_validator

from fednnunet.config.dataset import POOLED_NODE, CentreConfig, DatasetConfig
from fednnunet.config.groups import ExchangeConfig, FederationConfig, PathsConfig, StrategyConfig
from fednnunet.config.shared import NodeRunConfig, SharedRunConfig
from fednnunet.errors import ConfigError, plain_message

CASCADE = "3d_cascade_fullres"


class RunConfig(NodeRunConfig):
    """Everything that a run depends on.

    Attributes:
        dataset: Which images, of which centres.
        strategy: How nodes work together.
        exchange: How layers travel.
        federation: How server and nodes are brought together.
        logger: Trackers that follow the run, by name (Hydra ``_target_``).
        paths: Folders of the run.
    """

    dataset: DatasetConfig
    strategy: StrategyConfig
    exchange: ExchangeConfig
    federation: FederationConfig
    logger: dict[str, dict[str, Any]]
    paths: PathsConfig

    @model_validator(mode="after")
    def _nodes_are_centres(self) -> RunConfig:
        names = {centre.name for centre in self.dataset.centres} | {POOLED_NODE}
        for key, by_node in (
            ("gpu_memory.per_node", self.gpu_memory.per_node),
            ("init.weights", self.init.weights),
            ("init.plans", self.init.plans),
        ):
            unknown = sorted(set(by_node) - names) if isinstance(by_node, dict) else []
            if unknown:
                centres = ", ".join(sorted(names - {POOLED_NODE}))
                raise ValueError(f"{key}: {unknown[0]} is not a centre of {self.dataset.name} ({centres})")
        return self

    @model_validator(mode="after")
    def _union_is_possible(self) -> RunConfig:
        unknown = sorted(set(self.task.rename_labels) - {centre.name for centre in self.dataset.centres})
        if unknown:
            raise ValueError(f"task.rename_labels: {unknown[0]} is not a centre of {self.dataset.name}")
        if self.task.channels == "union":
            self._check_channels()
        if self.task.labels != "union":
            return self
        if self.strategy.heterogeneous_tasks:
            raise ValueError("task.labels=union makes one task of all; leave strategy.heterogeneous_tasks=false")
        if self.privacy.secure_sums is not None:
            raise ValueError(
                "task.labels=union averages each class over the nodes that annotate it, which secure sums would not "
                "hide; leave privacy.secure_sums=null"
            )
        if self.privacy.case is not None or self.privacy.node is not None:
            raise ValueError("task.labels=union: noise is added to all rows of a head alike; leave privacy=none")
        return self

    def _check_channels(self) -> None:
        """Whether one network for all channels of the nodes is possible."""
        if self.pools_cases:
            raise ValueError(
                f"task.channels=union needs nodes that keep their cases, and strategy={self.strategy.name} pools them; "
                "take strategy=asym, ffe or local"
            )
        if self.strategy.heterogeneous_tasks:
            raise ValueError("task.channels=union makes one task of all; leave strategy.heterogeneous_tasks=false")
        if self.privacy.case is not None or self.privacy.node is not None:
            raise ValueError("task.channels=union: steps that hide cases or nodes drop no channels; leave privacy=none")
        if self.privacy.secure_sums is not None:
            raise ValueError(
                "task.channels=union: what the first layer learns of a channel that one node alone has would stand by "
                "itself in a secure sum, and not be hidden; leave privacy.secure_sums=null"
            )

    @model_validator(mode="after")
    def _can_be_deployed(self) -> RunConfig:
        """What nodes on other machines need, and what only they can say."""
        if self.on_single_machine:
            for centre in self.dataset.centres:
                if centre.dataset is None:
                    raise ValueError(f"dataset.centres: {centre.name} has no dataset: an id, a name, or a folder")
            return self
        if self.federation.server is None:
            raise ValueError("federation.server: name the folder of the server's state (fednnunet server up --state …)")
        if self.pools_cases:
            raise ValueError(
                f"strategy={self.strategy.name} pools all images, which stay apart where nodes are other machines"
            )
        for key, given in (
            ("init.weights", self.init.weights),
            ("init.previous_stage", self.init.previous_stage),
            ("init.plans", self.init.plans),
            ("gpu_memory.per_node", self.gpu_memory.per_node),
        ):
            if given:
                raise ValueError(f"{key}: nodes on other machines set this in their own node.yaml, not the server")
        return self

    @model_validator(mode="after")
    def _expected_nodes_are_started(self) -> RunConfig:
        expected = self.federation.expected_nodes
        if not self.on_single_machine:
            if (expected or 0) > len(self.dataset.centres):
                raise ValueError(
                    f"federation.expected_nodes={expected}: dataset.centres names {len(self.dataset.centres)}"
                )
            return self
        started = (1 if self.pools_cases else len(self.training_centres)) + len(self.external_centres)
        if expected not in (None, started):
            raise ValueError(
                f"federation.expected_nodes={expected}: on this machine {started} nodes are started, one per "
                "centre; name other dataset.centres, or leave federation.expected_nodes=null"
            )
        return self

    @model_validator(mode="after")
    def _cascade_has_its_input(self) -> RunConfig:
        cascade = self.configuration == CASCADE
        if cascade and self.init.previous_stage is None and self.on_single_machine:
            raise ValueError(
                f"configuration={CASCADE} refines the segmentations of 3d_lowres; train that first, and name the "
                "folder of its runs: init.previous_stage=…"
            )
        if cascade and self.evaluation.cross_centre:
            raise ValueError(
                f"evaluation.cross_centre=true does not work with configuration={CASCADE}: other nodes lack the "
                "3d_lowres segmentations that its models refine"
            )
        return self

    @property
    def on_single_machine(self) -> bool:
        """Server and nodes run on this machine."""
        return self.federation.grid == "single_machine"

    @property
    def pools_cases(self) -> bool:
        """One node holds the cases of all training centres."""
        return self.strategy.plan_from == "pooled"

    @property
    def training_centres(self) -> list[CentreConfig]:
        """Centres with training cases, in the order of the config."""
        return [centre for centre in self.dataset.centres if not centre.external]

    @property
    def external_centres(self) -> list[CentreConfig]:
        """Centres for evaluation only; none where they lack what they need: models, or segmentations to refine."""
        left_out = self.configuration == CASCADE or self.keeps_models
        return [centre for centre in self.dataset.centres if centre.external and not left_out]

    @property
    def keeps_models(self) -> bool:
        """Models of single nodes do not leave them: layers are summed securely, and nodes have some of their own."""
        if self.privacy.secure_sums is None:
            return False
        return self.strategy.plan_from != "federated" or bool(self.strategy.aggregation.get("keep_local"))

    @property
    def shared(self) -> SharedRunConfig:
        """What nodes on other machines are sent of this configuration."""
        shared = self.model_dump(mode="json", by_alias=True, include=set(SharedRunConfig.model_fields))
        return SharedRunConfig.model_validate(shared)


def read_config(cfg: DictConfig) -> RunConfig:
    """Resolve and check a composed Hydra config.

    Raises:
        ConfigError: names the key and what is wrong with its value.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_interpolation_problem(error)) from None
    try:
        return RunConfig.model_validate(container)
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None


def _interpolation_problem(error: OmegaConfBaseException) -> str:
    """What a resolver of ours has said, without OmegaConf's words around it; else OmegaConf's words."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ConfigError):
            return str(inner)
        inner = inner.__context__
    return " ".join(str(error).split())


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = plain_message(problem)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}"
    if message.startswith(f"{key}="):
        return message
    value = problem["input"]
    return (
        f"{key}={value}: {message}"
        if key and isinstance(value, str | int | float)
        else f"{key}: {message}".lstrip(": ")
    )
