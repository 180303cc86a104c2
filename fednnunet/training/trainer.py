"""From settings to an initialised nnU-Net trainer, or to its network alone."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.paths import nnUNet_extTrainer
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from fednnunet.config.groups import TrainerConfig
from fednnunet.errors import ConfigError
from fednnunet.planning.class_lookup import find_class, nnunet_classes
from fednnunet.training.network_state import freeze_other_layers, layer_shapes


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """The trainer class called ``name``: one of nnU-Net's, one in ``nnUNet_extTrainer``, or an import path.

    Raises:
        ConfigError: there is none (with the nearest names), or it needs a package that is not installed.
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
            "by name, which *args or **kwargs make impossible"
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

    nnU-Net's path variables must be set for this process.

    Args:
        plans: nnU-Net's plans; not changed (nnU-Net would pop a key).
        configuration: nnU-Net's configuration, such as ``2d``.
        fold: fold to train.
        dataset_json: nnU-Net's ``dataset.json``.
        settings: trainer class, and what replaces its own settings.
        device: device to train on.
        precision: precision of Lightning; ``16-mixed`` gets a gradient scaler on every device.

    Raises:
        ConfigError: unknown trainer class, a configuration that the plans lack, layers that cannot be trained alone, or
            a network of so few stages that deep supervision has nothing to weigh.
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
    if settings.train_layers:
        trainer.configure_optimizers = _freeze_before(trainer, settings.train_layers)
    trainer.get_training_transforms = _disable_blur_benchmark(trainer.get_training_transforms)
    if trainer._get_deep_supervision_scales() == []:
        raise _too_few_stages(trainer)
    with _distributed_on_cpu(trainer, device):
        trainer.initialize()
    if not np.isfinite(getattr(trainer.loss, "weight_factors", None) or [1.0]).all():
        raise _too_few_stages(trainer)
    if precision == "16-mixed" and trainer.grad_scaler is None:
        trainer.grad_scaler = torch.amp.GradScaler(device.type)  # nnU-Net has one on CUDA only
    # nnU-Net draws a 30 x 54 inch progress.png after every epoch (0.7 s); the report has the curves.
    trainer.logger.plot_progress_png = lambda output_folder: None
    return trainer


def _too_few_stages(trainer: nnUNetTrainer) -> ConfigError:
    """nnU-Net weighs the coarsest output 0 and divides by the sum, which is 0 where it is the only one: two stages."""
    configuration = trainer.configuration_name
    stages = len(trainer.configuration_manager.pool_op_kernel_sizes)
    without = ", or take trainer.class=nnUNetTrainerNoDeepSupervision" if stages > 1 else ""
    return ConfigError(
        f"the network for {configuration} has {stages} stage{'s' * (stages > 1)} (n_stages of the plans), too few for "
        "nnU-Net's deep supervision: every loss would be NaN; plan 3 or more (larger patches, or a smaller "
        f"model.overrides.UNet_featuremap_min_edge_length){without}"
    )


def _freeze_before(trainer: nnUNetTrainer, parts: Sequence[str]) -> Callable[[], tuple[Any, Any]]:
    """The trainer's ``configure_optimizers``, called once other layers are frozen: before DDP looks for what trains."""
    configure = trainer.configure_optimizers

    def freeze_and_configure() -> tuple[Any, Any]:
        freeze_other_layers(trainer.network, parts)
        return configure()

    return freeze_and_configure


def _disable_blur_benchmark(get_transforms: Callable[..., BasicTransform]) -> Callable[..., BasicTransform]:
    """Make augmentation independent of how busy the machine is.

    nnU-Net times its blurs once per shape, directly and by FFT, and then uses the faster way: their last bits, and with
    them a run's result, would depend on the clock. Kernels are 3 to 7 wide, for which the direct way is faster (1.2 to
    12 times, from 48 x 48 to 128 x 128 x 128).
    """

    def get(*arguments: Any, **options: Any) -> BasicTransform:
        transforms = get_transforms(*arguments, **options)
        for transform in nested_transforms(transforms):
            if isinstance(transform, GaussianBlurTransform):
                transform.benchmark = False
        return transforms

    return get


def nested_transforms(transform: BasicTransform) -> Iterator[BasicTransform]:
    """``transform`` and all transforms that it contains."""
    yield transform
    for value in vars(transform).values():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, BasicTransform):
                yield from nested_transforms(part)


@contextlib.contextmanager
def _distributed_on_cpu(trainer: nnUNetTrainer, device: torch.device) -> Iterator[None]:
    """Let nnU-Net, which expects CUDA for distributed training, work with processes on a CPU, too."""
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


def build_network(
    trainer_class: type[nnUNetTrainer],
    plans: PlansManager,
    configuration: str,
    dataset_json: dict[str, Any],
    more_classes: int = 0,
) -> nn.Module:
    """The network that ``trainer_class`` builds from ``plans``, as for prediction; no data are needed.

    Args:
        trainer_class: nnU-Net's trainer.
        plans: nnU-Net's plans.
        configuration: nnU-Net's configuration, such as ``2d``.
        dataset_json: nnU-Net's ``dataset.json``.
        more_classes: number of classes beside those of ``dataset_json``.
    """
    settings = plans.get_configuration(configuration)
    return trainer_class.build_network_architecture(
        plans,
        settings,
        determine_num_input_channels(plans, settings, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads + more_classes,
        enable_deep_supervision=False,
    )


def class_layers(
    trainer_class: type[nnUNetTrainer], plans: PlansManager, configuration: str, dataset_json: dict[str, Any]
) -> list[str]:
    """Layers whose first axis are classes, in the order of their values; found by building with one class more.

    Args:
        trainer_class: nnU-Net's trainer.
        plans: nnU-Net's plans.
        configuration: nnU-Net's configuration, such as ``2d``.
        dataset_json: nnU-Net's ``dataset.json``, with the labels of all nodes.

    Raises:
        ConfigError: there is none, or classes are not the first axis of one.
    """
    build = partial(build_network, trainer_class, plans, configuration, dataset_json)
    try:
        with torch.device("meta"):  # shapes without values
            both = [layer_shapes(build(more)) for more in (0, 1)]
    except (RuntimeError, NotImplementedError):  # a trainer of one's own may compute with values
        both = [layer_shapes(build(more)) for more in (0, 1)]
    classes = plans.get_label_manager(dataset_json).num_segmentation_heads
    fewer, more = both
    found = [name for name in {**fewer, **more} if fewer.get(name) != more.get(name)]
    name = trainer_class.__name__
    if not found:
        raise ConfigError(f"task.labels=union: no layer of {name}'s network depends on the classes; choose another one")
    for layer in found:
        ours, theirs = fewer.get(layer, []), more.get(layer, [])
        if ours[:1] != [classes] or theirs[:1] != [classes + 1] or ours[1:] != theirs[1:]:
            raise ConfigError(
                f"task.labels=union: layer {layer} of {name}'s network depends on the classes, and its first axis are "
                "not these; choose a trainer.class whose segmentation layers alone do"
            )
    return found


def plot_progress(trainer: nnUNetTrainer) -> None:
    """Write nnU-Net's ``progress.png`` once."""
    type(trainer.logger).plot_progress_png(trainer.logger, trainer.output_folder)
