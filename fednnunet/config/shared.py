"""What a server may tell a node to do: the part of a run's configuration that travels.

Everything else is the node's own: where its data lie, its device, its memory. Nothing in here is a path, and a class
is named only if nnU-Net defines it or the node's own configuration allows it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, field_validator

from fednnunet.exchange.messages import Fold

Configuration = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]


class Config(BaseModel):
    """Base of all configuration groups: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class SharedDataset(Config):
    """What a node is told of a dataset.

    Attributes:
        name: as it appears in reports.
        configuration: nnU-Net configuration to train.
        hd95_unit: ``mm`` by the image's spacing, ``pixels`` where it has none.
        surface_tolerance: within which two surfaces count as one for the surface DSC, in that unit.
    """

    name: str
    configuration: Configuration
    hd95_unit: Literal["mm", "pixels"]
    surface_tolerance: float = Field(default=2.0, gt=0)


class SharedTrainer(Config):
    """What nnU-Net's trainer does. None leaves a value as the class sets it.

    Attributes:
        class_: key ``class``: an ``nnUNetTrainer`` class that nnU-Net finds, or an import path of one's own.
        epochs: epochs; with ``strategy.local_epochs=1`` also the number of rounds.
        iterations: training iterations per epoch.
        val_iterations: validation iterations per epoch.
        initial_lr: initial learning rate.
        weight_decay: of the optimizer.
        oversample_foreground: fraction of a batch's patches that must hold foreground.
        save_probabilities: keep softmax outputs of held-out cases, for nnU-Net's ensembles (``--npz``).
    """

    class_: str = Field(alias="class")
    epochs: int | None = Field(default=None, ge=1)
    iterations: int | None = Field(default=None, ge=1)
    val_iterations: int | None = Field(default=None, ge=1)
    initial_lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    oversample_foreground: float | None = Field(default=None, ge=0, le=1)
    save_probabilities: bool = False


class SharedModel(Config):
    """How nnU-Net plans the network and preprocesses for it.

    Attributes:
        planner: an ``ExperimentPlanner`` class that nnU-Net finds, or an import path of one's own.
        plans_name: identifier of the plans, in nnU-Net's folder names; None for the planner's own.
        preprocessor: a preprocessor class that nnU-Net finds; None for the planner's own.
        overwrite_target_spacing: mm (Z, Y, X) to resample to in 3d, instead of the planner's choice.
        overrides: attributes of the planner to change, such as ``UNet_base_num_features``.
    """

    planner: str
    plans_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    preprocessor: str | None = None
    overwrite_target_spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    overrides: dict[str, Any] = {}


def _known_folds(fold: Any) -> Any:
    folds = fold if isinstance(fold, list) else [fold]
    for one in folds:
        if one != "all" and (type(one) is not int or not 0 <= one <= 4):
            raise ValueError(f"fold={one}: must be 0 to 4, or all to train on every case")
    if not folds or len(set(map(str, folds))) < len(folds):
        raise ValueError(f"fold={fold}: name each fold once")
    return fold


Folds = Annotated[Fold | list[Fold], BeforeValidator(_known_folds)]
"""One fold, or several that are trained one after another."""


class SharedRunConfig(Config):
    """What a node is told with the first message of a run; unknown keys are errors.

    Attributes:
        seed: of the run.
        fold: to train.
        dataset: how images are preprocessed and scored.
        share: what is done to what is told of the fingerprint.
        trainer: how long and how nnU-Net's trainer trains.
        model: how nnU-Net plans the network.
        gpu_memory: GB that plans aim at, where the node does not say; None for what the planner was made for.
        cap_memory: take no more of a CUDA GPU than that.
    """

    seed: int = Field(ge=0)
    fold: Folds
    dataset: SharedDataset
    share: Literal["full", "quantised"]
    trainer: SharedTrainer
    model: SharedModel
    gpu_memory: PositiveFloat | None
    cap_memory: bool

    @field_validator("model")
    @classmethod
    def _overrides_are_numbers(cls, model: SharedModel) -> SharedModel:
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
