"""Write a MONAI bundle: configs, weights, card, and a wrapper of our own around nnU-Net's predictor.

MONAI 1.6.1's own classes for nnU-Net fail with nnunetv2 2.7 and later, and see other voxels where the first axis is
coarser than the others, as they feed images (X, Y, Z) to a network of (Z, Y, X).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from fednnunet import __version__
from fednnunet.errors import DataError
from fednnunet.files import replacing
from fednnunet.models.archive import CARD
from fednnunet.models.card_text import as_markdown
from fednnunet.models.checkpoint_file import check_weights
from fednnunet.models.export_zip import Handover, as_json, write_entry
from fednnunet.models.model_card import ModelCard
from fednnunet.models.open_archive import planned_network
from fednnunet.models.trained_model import TrainedModel

NETWORK = "nnunet_network"
"""Module of the wrapper, here and in the bundle's ``scripts``."""
MONAI = "1.6.1"
"""Version of MONAI that the tests run the bundle with."""
READERS = ("SimpleITKIO", "NibabelIO")
"""nnU-Net's readers that see an image as MONAI does, but for the order of axes; others turn it to a standard
orientation, or read natural images."""


def export_bundle(handover: Handover, target: Path) -> ModelCard:
    """Write the zip of a bundle.

    Args:
        handover: what is handed over.
        target: the zip; replaced where it exists, and left as it is where this fails.

    Returns:
        The card that is in it.

    Raises:
        DataError: the model cannot be read, holds what is not finite, or is none that MONAI can feed.
    """
    portable = handover.portable()
    model = portable.first
    if len(portable.selected) > 1:
        raise DataError(
            f"{model.where}: a bundle has one network, and this is an ensemble of {len(portable.selected)}; leave out "
            "--format monai, or choose one, such as by --configuration"
        )
    reader = model.plans["image_reader_writer"]  # that nnU-Net segments with, whatever dataset.json said for planning
    if reader not in READERS:
        raise DataError(
            f"{model.where}: images are read by {reader}, and MONAI has nothing like it; bundles can be made of models "
            f"of {' and '.join(READERS)}"
        )
    if model.plans["configurations"][model.configuration].get("previous_stage"):
        raise DataError(f"{model.where}: a bundle has one network, and {model.configuration} needs that before it, too")
    digests: dict[str, str] = {}
    with replacing(target) as partial, ZipFile(partial, "w") as archive:
        for name, content in _bundle_files(model):
            digests[name] = hashlib.sha256(content).hexdigest()
            write_entry(archive, f"{handover.name}/{name}", content)
        card = handover.card(digests, portable)
        write_entry(archive, f"{handover.name}/configs/metadata.json", as_json(_metadata(card, model)))
        write_entry(archive, f"{handover.name}/docs/{CARD}", card.as_json().encode())
        write_entry(archive, f"{handover.name}/docs/README.md", _readme(card, model).encode())
    return card


def _bundle_files(model: TrainedModel) -> Iterator[tuple[str, bytes]]:
    yield "configs/inference.json", as_json(_inference(model))
    yield "models/plans.json", as_json(model.plans)
    yield "models/dataset.json", as_json(model.dataset_json)
    yield f"scripts/{NETWORK}.py", files("fednnunet.models").joinpath(f"{NETWORK}.py").read_bytes()
    yield "scripts/__init__.py", b""
    yield "models/model.pt", _weights(model)


def _weights(model: TrainedModel) -> bytes:
    """The state of :class:`~fednnunet.models.nnunet_network.NnUNetNetwork`: layers of all folds, tensors alone."""
    import torch

    network = planned_network(model)
    layers = {}
    for number, fold in enumerate(model.folds):
        weights = model.weights(fold)
        check_weights(weights, network, f"{model.where}: fold {fold}")
        copies: dict[int, torch.Tensor] = {}
        for name, tensor in weights.items():
            # Decoders refer to encoders: one tensor stays one.
            own = copies.setdefault(tensor.data_ptr(), tensor.detach().cpu().contiguous().clone())
            layers[f"folds.{number}.{name}"] = own if own.shape == tensor.shape else tensor.detach().cpu().clone()
    file = io.BytesIO()
    torch.save(layers, file)
    return file.getvalue()


def _inference(model: TrainedModel) -> dict[str, Any]:
    """``configs/inference.json``, with the names that MONAI's bundles have."""
    ending, channels = model.dataset_json["file_ending"], len(model.dataset_json["channel_names"])
    steps = [list(step.labels) for step in model.postprocessing.largest_component] if model.postprocessing else []
    return {
        "imports": ["$import os", "$import sys"],
        "bundle_root": ".",
        "make_scripts_importable": "$sys.path.insert(0, os.path.abspath(@bundle_root))",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": {
            "_target_": f"scripts.{NETWORK}.list_cases",
            "_requires_": "@make_scripts_importable",
            "folder": "@dataset_dir",
            "file_ending": ending,
            "channels": channels,
        },
        "network_def": {
            "_target_": f"scripts.{NETWORK}.NnUNetNetwork",
            "_requires_": "@make_scripts_importable",
            "plans": "$@bundle_root + '/models/plans.json'",
            "dataset_json": "$@bundle_root + '/models/dataset.json'",
            "configuration": model.configuration,
            "trainer": model.trainer,
            "folds": len(model.folds),
            "mirror_axes": None if model.mirror_axes is None else list(model.mirror_axes),
            "largest_component": steps,
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_ext": ".nii.gz",
                    "output_dtype": "$np.uint8" if _highest_label(model) < 256 else "$np.uint16",
                    "resample": False,
                    "separate_folder": False,
                }
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _metadata(card: ModelCard, model: TrainedModel) -> dict[str, Any]:
    """``configs/metadata.json``, in MONAI's schema."""
    channels = list(model.dataset_json["channel_names"].values())
    labels = {name: value for name, value in model.dataset_json["labels"].items() if name != "ignore"}
    order = model.dataset_json.get("regions_class_order")
    if order is not None:
        regions = [name for name in labels if labels[name] not in (0, [0])]
        classes = {"0": "background"} | {str(value): name for value, name in zip(order, regions, strict=True)}
    else:
        classes = {str(value): name for name, value in labels.items()}
    patch = model.plans["configurations"][model.configuration]["patch_size"]
    scores = {
        f"{score.centre}, {score.label or 'mean over labels'}": {
            metric: estimate.mean for metric in ("dsc", "hd95") if (estimate := getattr(score, metric)) is not None
        }
        for score in card.run.scores
    }
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by fednnunet {__version__}"},
        "monai_version": MONAI,
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "nnunetv2": version("nnunetv2"),
            "nibabel": version("nibabel"),
            "pytorch-ignite": "0.5.5",
        },
        "name": card.name,
        "task": "segmentation",
        "description": f"nnU-Net {model.configuration}, trained by the strategy {card.run.strategy or 'of nnU-Net'}",
        "authors": ", ".join(card.run.names) if card.run.names else "not named",
        "copyright": "as the licence says",
        "license": card.licence or "not stated",
        "data_type": model.dataset_json["file_ending"].lstrip("."),
        "image_classes": ", ".join(channels),
        "label_classes": "label map",
        "pred_classes": "label map",
        "eval_metrics": scores,
        "intended_use": " ".join(card.limits),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": ", ".join(channels),
                    "num_channels": len(channels),
                    "spatial_shape": ["*", "*", "*"],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(number): name for number, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 1,
                    "spatial_shape": ["*", "*", "*"],
                    "dtype": "float32",
                    "value_range": [0, _highest_label(model)],
                    "is_patch_data": False,
                    "channel_def": classes,
                }
            },
        },
        "patch_size": patch,
    }


def _highest_label(model: TrainedModel) -> int:
    values = [*model.dataset_json["labels"].values(), *model.dataset_json.get("regions_class_order", [])]
    return max(one for value in values for one in (value if isinstance(value, list) else [value]))


def _readme(card: ModelCard, model: TrainedModel) -> str:
    ending, channels = model.dataset_json["file_ending"], len(model.dataset_json["channel_names"])
    images = ", ".join(f"`CASE_{channel:04d}{ending}`" for channel in range(channels))
    reader = "nibabel" if ending.startswith(".nii") else "itk"
    return (
        f"{as_markdown(card)}\n## Running it\n\n"
        f"It needs monai {MONAI}, pytorch-ignite, {reader}, fire and nnunetv2 {version('nnunetv2')}. Put {images} of "
        "each case into `input`, and:\n\n"
        "```bash\npython -m monai.bundle run --config_file configs/inference.json --bundle_root .\n```\n\n"
        "Segmentations are written to `output`. `--dataset_dir` and `--output_dir` choose other folders. The network "
        "takes images as `LoadImaged` loads them: their own voxels, values and affine; do not resample, turn or "
        "normalise them before, nnU-Net does.\n"
    )
