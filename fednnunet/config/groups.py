"""The groups of the configuration, one class each; ``conf/<group>/`` holds their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator

from fednnunet.exchange.messages import MAX_FINE_TUNE_EPOCHS, MAX_FOLDS, ExchangeDtype, Fold, PersonalTraining

Configuration = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
GpuId = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^(GPU|MIG)-[0-9A-Za-z./-]+$")]
"""A GPU as ``nvidia-smi -L`` shows it: its number, or a UUID."""


class Config(BaseModel):
    """Base of all configuration groups: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class StrategyConfig(Config):
    """How nodes work together: group ``strategy``.

    Attributes:
        name: Name in folders and reports.
        plan_from: Fingerprint that a node plans from: its ``own``, the ``federated`` one, or that of the ``pooled``
            dataset.
        local_epochs: Epochs that every node trains between two aggregations.
        heterogeneous_tasks: Nodes may differ in labels and channels; the layers of their networks that match are
            shared.
        fine_tune_epochs: Epochs that every node trains on alone after the last aggregation, from the averages; both
            models are kept and scored. 0 for none.
        fine_tune_learning_rate: Initial learning rate of these epochs, which decays over them; null for a tenth of the
            trainer's.
        ditto_lambda: Weight lambda of Ditto's tie: every node trains a network of its own beside the shared one, pulled
            towards the averages; both are kept and scored. 0 leaves them apart; null for no such network.
        aggregation: Import path (a Hydra ``_target_``) and parameters of a
            :class:`~fednnunet.server.strategy.base.Strategy`.
    """

    name: str
    plan_from: Literal["own", "federated", "pooled"]
    local_epochs: int = Field(default=1, ge=1)
    heterogeneous_tasks: bool = False
    fine_tune_epochs: int = Field(default=0, ge=0, le=MAX_FINE_TUNE_EPOCHS)
    fine_tune_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ditto_lambda: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    aggregation: dict[str, Any]

    @property
    def personal(self) -> PersonalTraining | None:
        """How nodes come to models of their own; None where they end with the federation's."""
        if self.ditto_lambda is not None:
            return PersonalTraining(tie=self.ditto_lambda)
        if self.fine_tune_epochs:
            return PersonalTraining(fine_tune_epochs=self.fine_tune_epochs, learning_rate=self.fine_tune_learning_rate)
        return None

    @model_validator(mode="after")
    def _tasks_have_own_plans(self) -> StrategyConfig:
        if self.heterogeneous_tasks and self.plan_from != "own":
            raise ValueError("heterogeneous_tasks=true needs plan_from=own: strategy=asym (or local)")
        return self

    @model_validator(mode="after")
    def _is_one_personal_model(self) -> StrategyConfig:
        if self.ditto_lambda is not None and self.fine_tune_epochs:
            raise ValueError(
                "ditto_lambda and fine_tune_epochs both give a node a model of its own; set ditto_lambda=null or "
                "fine_tune_epochs=0"
            )
        if self.fine_tune_learning_rate is not None and not self.fine_tune_epochs:
            raise ValueError("fine_tune_learning_rate is of fine_tune_epochs, which are 0; set them, or leave it null")
        return self


class TrainerConfig(Config):
    """What nnU-Net's trainer does: group ``trainer``. Null leaves a value as the trainer class sets it.

    Attributes:
        class_: ``nnUNetTrainer`` class that nnU-Net finds, or an import path of your own (key ``class``).
        epochs: Epochs; with ``strategy.local_epochs=1`` also the number of rounds.
        iterations: Training iterations per epoch.
        val_iterations: Validation iterations per epoch.
        initial_lr: Initial learning rate.
        weight_decay: Weight decay of the optimizer.
        oversample_foreground: Fraction of a batch's patches that must contain foreground.
        save_probabilities: Keep the softmax outputs of held-out cases, for nnU-Net's ensembles (``--npz``).
        train_layers: Parts of layer names, such as ``norm``, ``seg_layers`` or ``decoder.stages.5``: only layers with
            one of them between their dots are trained and exchanged, the others stay as ``init.weights`` has them.
            Empty trains all.
    """

    class_: str = Field(alias="class")
    epochs: int | None = Field(default=None, ge=1)
    iterations: int | None = Field(default=None, ge=1)
    val_iterations: int | None = Field(default=None, ge=1)
    initial_lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    oversample_foreground: float | None = Field(default=None, ge=0, le=1)
    save_probabilities: bool = False
    train_layers: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]] = []


class ModelConfig(Config):
    """How nnU-Net plans the network and preprocesses for it: group ``model``.

    Attributes:
        planner: ``ExperimentPlanner`` class that nnU-Net finds, or an import path of your own.
        plans_name: Identifier of the plans, part of nnU-Net's folder names; null for the planner's own.
        preprocessor: Preprocessor class that nnU-Net finds; null for the planner's own.
        overwrite_target_spacing: Spacing to resample to in 3d, mm (Z, Y, X); null for the planner's choice.
        overrides: Attributes of the planner to change, such as ``UNet_base_num_features``.
    """

    planner: str
    plans_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    preprocessor: str | None = None
    overwrite_target_spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    overrides: dict[str, Any] = {}


class InitConfig(Config):
    """What training starts from, instead of nothing: group ``init``.

    Attributes:
        plans: Plans file, or folder of a finished run, to use instead of planning; for all nodes, or by node name.
        weights: Checkpoint to start from: nnU-Net's ``.pth``, or the folder of a finished run, whose checkpoint of the
            same node is taken; for all nodes, or by node name.
        previous_stage: Folder of finished ``3d_lowres`` runs, the input of ``3d_cascade_fullres``.
    """

    plans: Path | dict[str, Path] | None = None
    weights: Path | dict[str, Path] | None = None
    previous_stage: Path | None = None

    def plans_of(self, node: str) -> Path | None:
        """Plans file or run folder of ``node``; None if it plans."""
        return self.plans.get(node) if isinstance(self.plans, dict) else self.plans

    def weights_of(self, node: str) -> Path | None:
        """Checkpoint or run folder that ``node`` starts from, if any."""
        return self.weights.get(node) if isinstance(self.weights, dict) else self.weights


class GpuMemoryTarget(Config):
    """GPU memory that one node plans for.

    Attributes:
        gb: GPU memory in GB that nnU-Net plans patch and batch size for; null for what the planner was made for.
    """

    gb: PositiveFloat | None = None


class GpuMemoryConfig(GpuMemoryTarget):
    """GPU memory that plans aim at: group ``gpu_memory``.

    Attributes:
        gb: GPU memory in GB that nnU-Net plans patch and batch size for; null for what the planner was made for.
        per_node: GB by node name, for nodes that differ.
        cap: On CUDA, a worker takes no more than its target, as if its GPU were that small.
    """

    per_node: dict[str, PositiveFloat] = Field(default={})
    cap: bool = True

    def within(self, own: GpuMemoryTarget) -> GpuMemoryConfig:
        """The same for one node, whose ``own`` target wins where it has one."""
        return self.model_copy(update={"gb": own.gb or self.gb, "per_node": {}})


class ComputeConfig(Config):
    """How a node computes: group ``compute``.

    Attributes:
        device: ``auto`` (the GPU if there is one), ``cpu``, ``cuda`` or ``mps``.
        gpus: GPUs to compute on: ``auto`` for all that are visible, a list of ids, or the id of each node by its name.
            An id is what ``nvidia-smi -L`` shows: a number, or the UUID of a GPU or of a part of one (MIG).
        num_devices: GPUs (on the CPU: processes) that share each batch, by distributed data parallel.
        precision: Arithmetic of training; ``auto`` is nnU-Net's own: float16 autocast on CUDA, else float32.
        augmentation_workers: Background processes for augmentation; 0 augments in the training process, which alone is
            reproducible.
        preprocessing_workers: Processes for fingerprint and preprocessing; 1 works in the node's process.
        threads: Threads of torch; 0 divides the machine's cores among the nodes that run at once.
        compile: Use ``torch.compile`` on the network (CUDA only).
        detect_anomaly: Stop where a gradient becomes NaN, and say at which operation; slow.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    gpus: Literal["auto"] | list[GpuId] | dict[str, GpuId] = "auto"
    num_devices: int = Field(default=1, ge=1)
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    augmentation_workers: int = Field(default=0, ge=0)
    preprocessing_workers: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0)
    compile: bool = False
    detect_anomaly: bool = False

    @model_validator(mode="after")
    def _gpus_are_used(self) -> ComputeConfig:
        if self.gpus == "auto":
            return self
        if self.device in ("cpu", "mps"):
            raise ValueError(f"gpus={self.gpus} with device={self.device}; set device=cuda, or gpus=auto")
        if not self.gpus:
            raise ValueError("gpus names no GPU; set gpus=auto for all, or device=cpu to compute on the CPU")
        if isinstance(self.gpus, list) and (twice := {one for one in self.gpus if self.gpus.count(one) > 1}):
            raise ValueError(f"gpus={self.gpus}: GPU {min(twice, key=str)} is there twice")
        return self


class FederationConfig(Config):
    """How server and nodes are brought together: group ``federation``.

    Attributes:
        grid: ``single_machine`` runs server and nodes on this machine, without ports; ``deployment`` is the server of
            nodes on other machines.
        server: Folder of the server's state (``fednnunet server up``), for ``deployment``.
        workers: Worker processes, which share the nodes; each computes for one node at a time. 0 for as many as compute
            at once: one per core (CPU) or as many as fit (GPU), and never more than nodes. For ``single_machine``.
        cache_gib: GiB of main memory that the waiting nodes of a worker may hold; those that waited longest leave, and
            go on from their checkpoint. Results are the same. For ``single_machine``.
        reply_timeout_s: Seconds that the server waits for nodes to register and for the replies of a round; null waits
            forever.
        min_nodes: Fewest nodes that the federation goes on with when others fail or do not reply; null needs all.
        expected_nodes: Nodes that must register before the run begins, within ``reply_timeout_s``; null means one per
            centre.
    """

    grid: Literal["single_machine", "deployment"]
    server: Path | None = None
    workers: int = Field(default=0, ge=0)
    cache_gib: float = Field(default=0.5, ge=0)
    reply_timeout_s: float | None = Field(default=None, gt=0)
    min_nodes: int | None = Field(default=None, ge=1)
    expected_nodes: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _min_nodes_are_expected(self) -> FederationConfig:
        if self.expected_nodes is not None and self.min_nodes is not None and self.min_nodes > self.expected_nodes:
            raise ValueError(
                f"min_nodes={self.min_nodes} is more than expected_nodes={self.expected_nodes}; lower it, or raise "
                "expected_nodes"
            )
        return self


class ExchangeConfig(Config):
    """How layers travel between nodes and server: group ``exchange``.

    Attributes:
        dtype: Type that layers are rounded to while they travel, with error feedback; ``int8`` and ``int4`` are of
            their differences from what was sent before, ``float32`` sends them unchanged.
    """

    dtype: ExchangeDtype = "float32"


class EvaluationConfig(Config):
    """What is scored after training, and in which unit: group ``evaluation``.

    Attributes:
        cross_centre: Score every node's model on every other node's held-out cases, too (paper, Fig. 4).
        distance_unit: Unit of distances: ``mm``, or ``pixels`` where images have no spacing.
        surface_tolerance: Distance within which two surfaces count as one for the surface DSC, in ``distance_unit``.
    """

    cross_centre: bool = False
    distance_unit: Literal["mm", "pixels"] = "mm"
    surface_tolerance: float = Field(default=2.0, gt=0)


class CachePaths(Config):
    """Folders of a node.

    Attributes:
        cache: Folder of fingerprints and preprocessed images, shared by runs.
    """

    cache: Path


class PathsConfig(CachePaths):
    """Folders of a run: group ``paths``.

    Attributes:
        cache: Folder of fingerprints and preprocessed images, shared by runs.
        data: Folder of generated datasets.
        run: Folder of this run.
    """

    data: Path
    run: Path


def _known_folds(fold: Any) -> Any:
    folds = fold if isinstance(fold, list) else [fold]
    for one in folds:
        if one != "all" and (type(one) is not int or not 0 <= one < MAX_FOLDS):
            raise ValueError(f"fold={one}: must be the number of a fold, from 0, or all to train on every case")
    if not folds or len(set(map(str, folds))) < len(folds):
        raise ValueError(f"fold={fold}: name each fold once")
    return fold


Folds = Annotated[Fold | list[Fold], BeforeValidator(_known_folds)]
"""One fold, or several that are trained one after another."""
