"""What a server may tell a node to do: the part of a run's configuration that it sends.

Everything else is the node's own: where its data are, its device, its memory. Nothing in here is a path, and a class
is named only if nnU-Net defines it or the node's own configuration allows it.

To add a key that nodes read, edit three places:

1. The class of its group in ``config/groups.py``: type, range, one line of description.
2. The group's default in ``conf/<group>/*.yaml``, with a comment (``python -m fednnunet.config.reference`` then renews
   ``docs/reference/configuration.md``).
3. The code at the node that reads ``settings.config.<group>.<key>``.

Which group decides who sets the key where nodes are other machines: the groups of :class:`SharedKeys` come from the
server, the others of :class:`NodeRunConfig` from the node's own file (:class:`~fednnunet.config.node_file.NodeFile`),
and for ``fingerprint``, ``privacy`` and ``gpu_memory`` the node's own file has the last word. Add a key of the node's
own file to ``deploy/node.yaml``, too.
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from fednnunet.config.fingerprint import FingerprintConfig
from fednnunet.config.groups import (
    CachePaths,
    ComputeConfig,
    Config,
    Configuration,
    EvaluationConfig,
    Folds,
    GpuMemoryConfig,
    InitConfig,
    ModelConfig,
    TrainerConfig,
)
from fednnunet.config.privacy import PrivacyConfig
from fednnunet.config.task import TaskConfig
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold


class SharedKeys(Config):
    """The keys of a run that every node needs, wherever it is.

    Attributes:
        seed: Random seed of the run: initialisation and augmentation at every node.
        fold: Held-out fold of nnU-Net's 5-fold cross-validation, 0 to 4, or of the centres' own ``splits_final.json``;
            several, one after another, as a list; ``all`` trains on every case and scores external centres only.
        configuration: nnU-Net configuration to train.
        trainer: How long and how nnU-Net's trainer trains.
        model: How nnU-Net plans the network.
        fingerprint: What nodes send of their fingerprints.
        privacy: What protects what nodes send.
        gpu_memory: GPU memory that plans aim at.
        task: What is segmented, where nodes have annotated different structures.
        evaluation: What is scored, and in which unit.
    """

    seed: int = Field(ge=0)
    fold: Folds
    configuration: Configuration
    trainer: TrainerConfig
    model: ModelConfig
    fingerprint: FingerprintConfig
    privacy: PrivacyConfig = PrivacyConfig()
    gpu_memory: GpuMemoryConfig
    task: TaskConfig = TaskConfig()
    evaluation: EvaluationConfig

    @property
    def folds(self) -> list[Fold]:
        """Folds to train, one after another."""
        return self.fold if isinstance(self.fold, list) else [self.fold]


class SharedRunConfig(SharedKeys):
    """What a server sends a node on another machine with the first message of a run."""

    @field_validator("model")
    @classmethod
    def _overrides_are_numbers(cls, model: ModelConfig) -> ModelConfig:
        for name, value in model.overrides.items():
            values = value if isinstance(value, list) else [value]
            if name.startswith("_") or not all(isinstance(one, bool | int | float) for one in values):
                raise ValueError(f"overrides.{name}: a server may set numbers only")
        return model

    @property
    def classes(self) -> dict[str, str]:
        """Key of the configuration to the class that it names, where it names one by an import path."""
        named = {
            "trainer.class": self.trainer.class_,
            "model.planner": self.model.planner,
            "model.preprocessor": self.model.preprocessor or "",
        }
        return {key: name for key, name in named.items() if "." in name}


class NodeRunConfig(SharedKeys):
    """What a node's part of a run depends on.

    Attributes:
        init: What training starts from.
        compute: How the node computes.
        paths: Folders of the node.
    """

    init: InitConfig
    compute: ComputeConfig
    paths: CachePaths

    @model_validator(mode="after")
    def _cases_can_be_hidden(self) -> NodeRunConfig:
        if self.privacy.case is None:
            return self
        for key, given, possible in (
            ("num_devices", self.compute.num_devices, (1,)),
            ("augmentation_workers", self.compute.augmentation_workers, (0,)),
            ("precision", self.compute.precision, ("auto", "32-true")),
        ):
            if given not in possible:
                raise ValueError(
                    f"compute.{key}={given} does not work with privacy.case, which draws and clips case by case; set "
                    f"compute.{key}={possible[-1]}"
                )
        return self

    def check_start(self, node: str) -> None:
        """Check that ``node`` has weights to start from, where it is to train a part of them.

        Raises:
            ConfigError: it has not.
        """
        if self.trainer.train_layers and self.init.weights_of(node) is None:
            raise ConfigError(
                f"trainer.train_layers leaves the other layers as they start; name weights for {node}: init.weights"
            )

    def gpu_memory_of(self, node: str) -> float | None:
        """Planning target of ``node`` in GB; None leaves it to the planner."""
        return self.gpu_memory.per_node.get(node, self.gpu_memory.gb)
