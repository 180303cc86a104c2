"""From settings to an initialised nnU-Net trainer and the Lightning trainer that runs it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from nnunetv2.paths import nnUNet_extTrainer
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from fednnunet.config.groups import ComputeConfig, TrainerConfig
from fednnunet.errors import ConfigError
from fednnunet.planning.class_lookup import find_class, nnunet_classes
from fednnunet.training.module import NNUNetModule

log = logging.getLogger(__name__)

GIGABYTE = 2**30
"""As in the names of GPUs."""


def resolve_device(name: str) -> torch.device:
    """The torch device of ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: the device was asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute.device=cuda, but torch sees no CUDA GPU here; use compute.device=cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("compute.device=mps, but torch sees no Apple GPU here; use compute.device=cpu or auto")
    return torch.device(name)


def check_device(compute: ComputeConfig, device: torch.device) -> None:
    """Whether ``device`` can do what the configuration asks of it.

    Raises:
        ConfigError: mixed precision needs CUDA (or a CPU, slowly); or there are fewer GPUs than asked for.
    """
    if compute.precision in ("16-mixed", "bf16-mixed") and device.type not in ("cuda", "cpu"):
        raise ConfigError(
            f"compute.precision={compute.precision} does not work on {device.type}; use compute.precision=auto"
        )
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, compute.num_devices)
    if compute.num_devices > there:
        raise ConfigError(f"compute.num_devices={compute.num_devices}, but torch sees {there} GPU here; lower it")


def cap_memory(device: torch.device, gigabytes: float | None) -> None:
    """Let this process take no more of a CUDA GPU than ``gigabytes``, as if the GPU were that small."""
    if device.type == "cuda" and gigabytes is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(gigabytes, total))
        log.info("this worker takes at most %g GB of the GPU's %.1f", gigabytes, total / GIGABYTE)


def memory_fraction(gigabytes: float, total: int) -> float:
    """Part of a GPU of ``total`` bytes that a GPU of ``gigabytes`` has; at most 1."""
    return min(1.0, gigabytes * GIGABYTE / total)


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """The trainer class called ``name``: one of nnU-Net's, one in ``nnUNet_extTrainer``, or an import path.

    Raises:
        ConfigError: there is none (with the nearest names), or it needs a package that is not there.
    """
    folder = "training/nnUNetTrainer"
    if nnUNet_extTrainer.is_set() and "." not in name and name not in nnunet_classes(folder):
        for path in filter(os.path.isdir, str(nnUNet_extTrainer).split(os.pathsep)):
            found = recursive_find_python_class(path, name, None, path, cleanup_imports_from_base_folder=True)
            if found is not None:
                return found
    found = find_class(name, "trainer.class", nnUNetTrainer, folder)
    parameters = inspect.signature(found.__init__).parameters.values()
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters):
        raise ConfigError(
            f"trainer.class={name}: its __init__ must name its parameters as nnUNetTrainer's does; nnU-Net stores them "
            "by name and cannot do with *args or **kwargs"
        )
    return found


def build_nnunet_trainer(
    plans: dict[str, Any],
    configuration: str,
    fold: int | str,
    dataset_json: dict[str, Any],
    settings: TrainerConfig,
    device: torch.device,
    precision: str = "auto",
) -> nnUNetTrainer:
    """Construct and initialise the trainer class that ``settings`` names.

    nnU-Net's path variables must be set for this process. ``plans`` is not changed (nnU-Net pops a key).

    Raises:
        ConfigError: unknown trainer class, or a configuration the plans do not hold.
    """
    if configuration not in plans["configurations"]:
        raise ConfigError(
            f"configuration {configuration} is not in the plans, which have {', '.join(plans['configurations'])}"
        )
    trainer = find_trainer(settings.class_)(
        plans={**copy.deepcopy(plans), "continue_training": False},
        configuration=configuration,
        fold=fold,
        dataset_json=copy.deepcopy(dataset_json),
        device=device,
    )
    for attribute, value in (
        ("num_epochs", settings.epochs),
        ("num_iterations_per_epoch", settings.iterations),
        ("num_val_iterations_per_epoch", settings.val_iterations),
        ("initial_lr", settings.initial_lr),
        ("weight_decay", settings.weight_decay),
        ("oversample_foreground_percent", settings.oversample_foreground),
    ):
        if value is not None:
            setattr(trainer, attribute, value)
    trainer.get_training_transforms = _disable_blur_benchmark(trainer.get_training_transforms)
    with _distributed_on_cpu(trainer, device):
        trainer.initialize()
    if precision == "16-mixed" and trainer.grad_scaler is None:
        trainer.grad_scaler = torch.amp.GradScaler(device.type)  # nnU-Net has one on CUDA only
    # nnU-Net draws a 30 x 54 inch progress.png after every epoch (0.7 s); the report has the curves.
    trainer.logger.plot_progress_png = lambda output_folder: None
    return trainer


def _disable_blur_benchmark(get_transforms: Callable[..., BasicTransform]) -> Callable[..., BasicTransform]:
    """Augmentation that does not depend on how busy the machine is.

    nnU-Net's blurs are timed once a shape, directly and by FFT, and then done in the faster way: their last bits, and
    with them a run's result, would follow the clock. Kernels are 3 to 7 wide, for which the direct way is the faster
    (1.2 to 12 times, from 48 x 48 to 128 x 128 x 128).
    """

    def get(*arguments: Any, **options: Any) -> BasicTransform:
        transforms = get_transforms(*arguments, **options)
        for transform in nested_transforms(transforms):
            if isinstance(transform, GaussianBlurTransform):
                transform.benchmark = False
        return transforms

    return get


def nested_transforms(transform: BasicTransform) -> Iterator[BasicTransform]:
    """``transform`` and all that it is made of."""
    yield transform
    for value in vars(transform).values():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, BasicTransform):
                yield from nested_transforms(part)


@contextlib.contextmanager
def _distributed_on_cpu(trainer: nnUNetTrainer, device: torch.device) -> Iterator[None]:
    """nnU-Net takes distributed training for CUDA's; let it work with processes on a CPU, too."""
    if not trainer.is_ddp or device.type != "cpu":
        yield
        return
    trainer.device, trainer.grad_scaler = device, None
    original = nnunet_trainer.DDP
    nnunet_trainer.DDP = lambda network, device_ids: original(network)
    try:
        yield
    finally:
        nnunet_trainer.DDP = original


class NNUNetDDPStrategy(DDPStrategy):
    """Lightning's DDP for a network that nnU-Net has wrapped already, as its checkpoints and metrics expect."""

    def configure_ddp(self) -> None:
        """The module stays as it is."""


def build_network(
    trainer_class: type[nnUNetTrainer], plans: PlansManager, configuration: str, dataset_json: dict[str, Any]
) -> nn.Module:
    """The network that ``trainer_class`` builds from ``plans``, as for prediction; no data are needed."""
    settings = plans.get_configuration(configuration)
    return trainer_class.build_network_architecture(
        plans,
        settings,
        determine_num_input_channels(plans, settings, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )


def plot_progress(trainer: nnUNetTrainer) -> None:
    """Write nnU-Net's ``progress.png`` once."""
    type(trainer.logger).plot_progress_png(trainer.logger, trainer.output_folder)


def build_lightning_trainer(
    module: NNUNetModule, compute: ComputeConfig, callbacks: Sequence[L.Callback], root: Path
) -> L.Trainer:
    """A Lightning trainer that runs the epochs which the nnU-Net trainer has left."""
    nnunet = module.nnunet
    cuda = nnunet.device.type == "cuda"
    plugins: list[Any] = [LightningEnvironment()]  # not SLURM's, of whose tasks a node knows nothing
    precision: Any = compute.precision
    if precision == "auto":
        precision = "16-mixed" if cuda else "32-true"  # nnU-Net: autocast on CUDA only
    if not module.automatic_optimization:
        precision = "32-true"  # the trainer's own train_step has its own autocast and scaler
    if precision == "16-mixed":
        # The trainer's scaler is the one that nnU-Net's checkpoints save.
        plugins.append(MixedPrecision("16-mixed", nnunet.device.type, nnunet.grad_scaler))
        precision = None
    distributed = torch.distributed.get_world_size() if nnunet.is_ddp else 1
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(nnunet.device.type, nnunet.device.type),
        devices=distributed,
        strategy=NNUNetDDPStrategy() if distributed > 1 else "auto",
        precision=precision,
        plugins=plugins,
        max_epochs=nnunet.num_epochs - nnunet.current_epoch,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,
        benchmark=cuda,
        detect_anomaly=compute.detect_anomaly,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=root,
    )
