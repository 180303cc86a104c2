"""Checkpoints of nnU-Net: read without executing anything in them, written with nothing but the model."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednnunet.errors import DataError, one_line
from fednnunet.training.checkpoint_types import NUMBERS

if TYPE_CHECKING:
    import torch
    from torch import nn

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that torch's wrappers give to layers; nnU-Net removes them where it saves, other tools may not."""


def read_checkpoint(source: Path | bytes, where: str, mapped: bool = False) -> dict[str, Any]:
    """Content of a checkpoint of nnU-Net, on the CPU; nothing in it is executed.

    Args:
        source: a file, or the content of one that came from elsewhere: torch's archive, not compressed.
        where: named in errors.
        mapped: of a file, leave numbers of tensors on the disk until they are looked at.

    Raises:
        DataError: it is damaged, or holds something else than tensors, numbers and text.
    """
    import torch

    if isinstance(source, bytes):
        _check_inner_archive(source, where)
    try:
        with torch.serialization.safe_globals(NUMBERS):
            checkpoint = torch.load(
                io.BytesIO(source) if isinstance(source, bytes) else source,
                map_location="cpu",
                weights_only=True,
                mmap=mapped and zipfile.is_zipfile(source),  # torch's older format cannot be mapped
            )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{where} cannot be read as a checkpoint: {one_line(cause)[:200]}") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise DataError(f"{where} is not a checkpoint of nnU-Net: it has no network_weights")
    return checkpoint


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Layer to tensor, without the names of torch's wrappers."""
    weights = {}
    for layer, tensor in checkpoint["network_weights"].items():
        name = str(layer)
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        weights[name] = tensor
    return weights


def mirror_axes_of(checkpoint: Mapping[str, Any], dimensions: int, where: str) -> tuple[int, ...] | None:
    """Axes of test-time mirroring that a checkpoint names.

    Args:
        checkpoint: content of one.
        dimensions: number of axes of the network's patches.
        where: named in errors.

    Raises:
        DataError: they are no axes of the network.
    """
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    if axes is None:
        return None
    if not isinstance(axes, tuple | list) or any(type(axis) is not int for axis in axes):
        raise DataError(f"{where}: inference_allowed_mirroring_axes must be axes, not {one_line(str(axes))[:80]}")
    if len(set(axes)) != len(axes) or not set(axes) <= set(range(dimensions)):
        raise DataError(f"{where}: inference_allowed_mirroring_axes {axes} are no axes of a network of {dimensions}")
    return tuple(axes)


def check_weights(weights: Mapping[str, Any], network: nn.Module, where: str) -> None:
    """Check that weights are a network's: the same layers and shapes, numbers that are whole and finite.

    Args:
        weights: layer to what should be a tensor.
        network: the network; may be on torch's ``meta`` device.
        where: named in errors.

    Raises:
        DataError: names the first layer that is not.
    """
    import torch

    planned = network.state_dict()
    for name in {**planned, **weights}:
        tensor, ours = weights.get(name), planned.get(name)
        layer = f"{where}: layer {one_line(name)[:120]}"
        if tensor is None or ours is None:
            raise DataError(
                f"{layer} is {'missing' if tensor is None else 'not in the network that the plans describe'}"
            )
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise DataError(f"{layer} is no plain tensor")
        if tensor.shape != ours.shape:
            raise DataError(
                f"{layer} has the shape {tuple(tensor.shape)}, and by plans and dataset.json {tuple(ours.shape)}"
            )
        if tensor.dtype.is_floating_point != ours.dtype.is_floating_point or tensor.is_complex():
            raise DataError(f"{layer} is {tensor.dtype}, and by the plans {ours.dtype}")
        if not tensor.is_contiguous():
            raise DataError(f"{layer} does not hold all of its numbers")
        if not torch.isfinite(tensor).all():
            raise DataError(f"{layer} holds NaN or infinity")
    storages = (weights[name].untyped_storage() for name in weights)
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    # Some names are of one layer; a network in which all are one would be a small file that fills memory.
    if sum(weights[name].nbytes for name, _ in network.named_parameters()) > held:
        raise DataError(f"{where}: layers share numbers that are each layer's own in the network of these plans")


def portable_checkpoint(
    weights: Mapping[str, torch.Tensor],
    trainer: str,
    configuration: str,
    fold: str,
    dataset_json: Mapping[str, Any],
    mirror_axes: tuple[int, ...] | None,
) -> bytes:
    """Content of a ``checkpoint_final.pth`` that nnU-Net predicts with, and that fine-tuning starts from.

    No state of an optimizer, no curves, no plans with what is theirs alone. Layers that are one to the network, as
    nnU-Net's decoders refer to its encoders, stay one; each tensor has a memory of its own.

    Args:
        weights: layer to tensor.
        trainer: name of nnU-Net's trainer.
        configuration: nnU-Net's configuration.
        fold: that they were trained on.
        dataset_json: of :func:`~fednnunet.models.portable.portable_description`: names of channels and labels.
        mirror_axes: axes of test-time mirroring.
    """
    import torch

    once: dict[tuple[Any, ...], torch.Tensor] = {}
    copies = {}
    for name, tensor in weights.items():
        memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        if memory not in once:
            once[memory] = tensor.detach().cpu().contiguous().clone()
        copies[name] = once[memory]
    content = {
        "network_weights": copies,
        "trainer_name": trainer,
        "init_args": {
            "configuration": configuration,
            "fold": fold if fold == "all" else int(fold),
            "dataset_json": dict(dataset_json),
        },
        "inference_allowed_mirroring_axes": mirror_axes,
    }
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _check_inner_archive(content: bytes, where: str) -> None:
    """Check that a checkpoint grows no larger when it is read, and is not torch's older format."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{where} is no checkpoint of torch 1.6 or later: {one_line(str(error))[:200]}") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DataError(f"{where} is compressed inside, which torch does not do")
    if sum(entry.file_size for entry in entries) > len(content):
        raise DataError(f"{where} announces more than it holds")
