"""Names of classes and functions in plans that are looked up and imported: only nnU-Net's and torch's own."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from fednnunet.errors import DataError, one_line
from fednnunet.planning.class_lookup import nnunet_classes

NETWORKS = tuple(
    f"dynamic_network_architectures.architectures.unet.{name}"
    for name in ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
)
"""Networks that nnU-Net's planners plan."""
_LAYERS = {
    "conv_op": ("conv", ("Conv1d", "Conv2d", "Conv3d")),
    "norm_op": (
        ("instancenorm", ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")),
        ("batchnorm", ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")),
    ),
    "dropout_op": ("dropout", ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")),
    "nonlin": ("activation", ("LeakyReLU", "ReLU", "PReLU", "ELU", "GELU", "SiLU", "Mish")),
}
RESAMPLING = (
    "resample_data_or_seg_to_shape",
    "resample_torch_fornnunet",
    "resample_torch_simple",
    "no_resampling_hack",
)
"""nnU-Net's functions that plans may name; its search would take anything that one of its modules has imported."""
NOT_GIVEN = ("data", "new_shape", "current_spacing", "new_spacing", "num_threads", "device")
"""Arguments of these that nnU-Net gives, or that belong to a machine and not to plans."""


def check_names(configuration: Mapping[str, Any], plans: Mapping[str, Any], where: str) -> None:
    """Check every name in plans that nnU-Net would look up, before it does.

    Args:
        configuration: one of the plans, with what it inherits.
        plans: nnU-Net's plans.
        where: named in errors.

    Raises:
        DataError: a name is none of nnU-Net's or torch's own, with what could have been there.
    """

    def check(field: str, name: Any, allowed: Collection[str]) -> None:
        _check_name(field, name, allowed, where)

    check("image_reader_writer", plans["image_reader_writer"], nnunet_classes("imageio"))
    check("label_manager", plans["label_manager"], ("LabelManager",))
    check("preprocessor_name", configuration["preprocessor_name"], nnunet_classes("preprocessing/preprocessors"))
    for scheme in configuration["normalization_schemes"]:
        check("normalization_schemes", scheme, nnunet_classes("preprocessing/normalization"))
    for what in ("data", "seg", "probabilities"):
        field = f"resampling_fn_{what}"
        check(field, configuration[field], RESAMPLING)
        given = configuration[f"{field}_kwargs"]
        allowed = _arguments(configuration[field])
        for name in given:
            check(f"{field}_kwargs", name, allowed)
    architecture = configuration["architecture"]
    check("network_class_name", architecture["network_class_name"], NETWORKS)
    for name in architecture["_kw_requires_import"]:
        check("_kw_requires_import", name, _LAYERS)
    for name, layers in _layer_names().items():
        value = architecture["arch_kwargs"].get(name)
        if value is not None:
            check(f"arch_kwargs.{name}", value, layers)


def check_reader(name: Any, where: str) -> None:
    """Check ``overwrite_image_reader_writer`` of a ``dataset.json``; None where there is none.

    Raises:
        DataError: it is none of nnU-Net's readers.
    """
    if name not in (None, "None"):
        _check_name("overwrite_image_reader_writer", name, nnunet_classes("imageio"), where)


def _check_name(field: str, name: Any, allowed: Collection[str], where: str) -> None:
    if name not in allowed:
        raise DataError(
            f"{where}: {field} is {one_line(str(name))[:80]}, which is not one of nnU-Net's own ("
            f"{', '.join(sorted(allowed)[:8])}): it would be imported, so it is refused"
        )


def _layer_names() -> dict[str, set[str]]:
    """Argument of a network to names that it may have: as ``torch.nn.Conv2d``, or with the module in between."""
    found: dict[str, set[str]] = {}
    for argument, groups in _LAYERS.items():
        for module, names in groups if isinstance(groups[0], tuple) else (groups,):
            for name in names:
                found.setdefault(argument, set()).update({f"torch.nn.{name}", f"torch.nn.modules.{module}.{name}"})
    return found


def _arguments(function: str) -> list[str]:
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

    parameters = inspect.signature(recursive_find_resampling_fn_by_name(function)).parameters
    return [name for name in parameters if name not in NOT_GIVEN]
