"""Check plans that another node made: they may name only what nnU-Net and torch define.

nnU-Net imports and calls what its plans name, for the network, for preprocessing and for the export.
"""

from __future__ import annotations

import re
from typing import Any

from fednnunet.errors import ProtocolError
from fednnunet.planning.class_lookup import nnunet_classes

NETWORK_CLASS = re.compile(r"dynamic_network_architectures\.architectures\.[a-z_]+\.[A-Za-z]+")
TORCH_LAYER = re.compile(r"torch\.nn\.(modules\.[a-z]+\.)?[A-Z][A-Za-z0-9]+")
RESAMPLING = re.compile(r"resample_\w+|no_resampling_hack")
"""Functions of ``nnunetv2.preprocessing.resampling``."""


def check_received_plans(plans: dict[str, Any], configuration: str) -> None:
    """Check that ``plans`` can be used without running anything but nnU-Net and torch.

    Raises:
        ProtocolError: they are not nnU-Net's plans, lack ``configuration``, or name anything but network classes of
            nnU-Net's architectures package, layers of ``torch.nn``, and nnU-Net's own classes and functions for
            preprocessing; or give arguments that are no plain values.
    """
    try:
        chosen = plans["configurations"][configuration]
        architecture = chosen["architecture"]
        arguments = architecture["arch_kwargs"]
        layers = [arguments[key] for key in architecture["_kw_requires_import"]]
        network = architecture["network_class_name"]
        of_nnunet = [
            ("preprocessor", chosen["preprocessor_name"], "preprocessing/preprocessors"),
            ("label manager", plans["label_manager"], "utilities/label_handling"),
            ("reader", plans["image_reader_writer"], "imageio"),
            *(("normalization", name, "preprocessing/normalization") for name in chosen["normalization_schemes"]),
        ]
        resampling = [
            (chosen[f"resampling_fn_{what}"], dict(chosen[f"resampling_fn_{what}_kwargs"]))
            for what in ("data", "seg", "probabilities")
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ProtocolError(f"the plans received hold no whole configuration {configuration}") from None
    if not NETWORK_CLASS.fullmatch(str(network)):
        raise ProtocolError(f"the plans received name {network} as network; it is not of nnU-Net's architectures")
    for name in layers:
        if name is not None and not TORCH_LAYER.fullmatch(str(name)):
            raise ProtocolError(f"the plans received name {name} as layer; it is not of torch.nn")
    for what, name, folder in of_nnunet:
        if name not in nnunet_classes(folder):
            raise ProtocolError(f"the plans received name {name} as {what}; nnU-Net has none of that name")
    for name, given in resampling:
        if not RESAMPLING.fullmatch(str(name)):
            raise ProtocolError(f"the plans received name {name} for resampling; nnU-Net does not resample by it")
        for key, value in given.items():
            if not isinstance(value, bool | int | float | str | None):
                raise ProtocolError(
                    f"the plans received give {name} the argument {key}={value}, which is not a plain value"
                )
