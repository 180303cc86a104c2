"""A network's state as unique named arrays.

nnU-Net's ``state_dict()`` lists most tensors two to four times (``decoder.encoder.*`` aliases ``encoder.*``,
``all_modules.*`` aliases ``conv`` and ``norm``). Exchanged are its parameters and buffers, each once, under names
without the prefixes that ``torch.compile`` and DDP add.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.arrays import BFLOAT16, check_finite
from fednnunet.exchange.layer_names import has_part

SEGMENTATION_PART = "seg_layers"
"""Part of the names of layers that end in labels; they fit one task only."""


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of DDP and ``torch.compile``, whose names have no prefix."""
    while isinstance(network, DistributedDataParallel | OptimizedModule):
        network = network.module if isinstance(network, DistributedDataParallel) else network._orig_mod
    return network


def named_tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, then persistent buffers, each tensor once, by its first name."""
    network = unwrap(network)
    yield from network.named_parameters()
    buffers = list(network.named_buffers())
    persistent = network.state_dict(keep_vars=True).keys() if buffers else ()  # it takes longer than all the rest
    for name, tensor in buffers:
        if name in persistent:
            yield name, tensor


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, each once, by its first name; others may be frozen."""
    return {name: tensor for name, tensor in unwrap(network).named_parameters() if tensor.requires_grad}


def freeze_other_layers(network: nn.Module, parts: Sequence[str]) -> None:
    """Train only parameters that have one of ``parts`` in their names.

    Raises:
        ConfigError: no layer has one of the parts; or layers would stay that cannot: segmentation layers, which no
            weights are loaded for, or running statistics, which follow the images.
    """
    named = dict(unwrap(network).named_parameters())
    for part in parts:
        if not any(has_part(name, [part]) for name in named):
            raise ConfigError(
                f"trainer.train_layers: no layer has the part {part}; layers are called {', '.join(list(named)[:1])}, "
                f"…, {', '.join(list(named)[-1:])}"
            )
    for name, parameter in named.items():
        parameter.requires_grad_(has_part(name, parts))
        if SEGMENTATION_PART in name.split(".") and not parameter.requires_grad:
            raise ConfigError(
                f"trainer.train_layers: {name} starts anew (init.weights), so it has to be trained; add "
                f"{SEGMENTATION_PART}"
            )
    moving = [name for name in buffer_names(network) if not has_part(name, parts)]
    if moving:
        raise ConfigError(f"trainer.train_layers: {moving[0]} follows the images, so it cannot stay; add its layer")


def layer_shapes(network: nn.Module) -> dict[str, list[int]]:
    """Shape of every tensor that can be exchanged, by name."""
    return {name: list(tensor.shape) for name, tensor in named_tensors(network)}


def buffer_names(network: nn.Module) -> list[str]:
    """Those of :func:`layer_shapes` that no optimizer trains: running statistics and counters."""
    trained = {name for name, _ in unwrap(network).named_parameters()}
    return [name for name, _ in named_tensors(network) if name not in trained]


def no_running_statistics(network: nn.Module, key: str) -> None:
    """Check that the network has no buffers, which noise could not hide.

    Args:
        network: the network.
        key: key of the configuration that asks for noise.

    Raises:
        ConfigError: it has.
    """
    statistics = buffer_names(network)
    if statistics:
        raise ConfigError(
            f"{key}: the network has running statistics ({statistics[0]}), which noise does not hide; choose a "
            "trainer.class with instance normalization, not batch normalization"
        )


def read_state(network: nn.Module, layers: Iterable[str], out: Mapping[str, np.ndarray]) -> None:
    """Copy ``layers`` of ``network`` into the arrays ``out`` of the same shapes and dtypes.

    Raises:
        ProtocolError: a layer the network does not have.
    """
    for name, tensor in _chosen(network, layers).items():
        torch.from_numpy(out[name]).copy_(tensor)


def state_arrays(network: nn.Module, layers: Iterable[str]) -> dict[str, np.ndarray]:
    """Read-only arrays of ``layers``: views of tensors in main memory, copies of others.

    Raises:
        ProtocolError: a layer the network does not have.
    """
    return {name: tensor.cpu().numpy() for name, tensor in _chosen(network, layers).items()}


def trained_arrays(network: nn.Module, layers: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of :func:`state_arrays` that an optimizer trains."""
    buffers = set(buffer_names(network))
    return state_arrays(network, [name for name in layers if name not in buffers])


def _chosen(network: nn.Module, layers: Iterable[str]) -> dict[str, torch.Tensor]:
    tensors = dict(named_tensors(network))
    chosen = {}
    for name in layers:
        if name not in tensors:
            raise ProtocolError(f"layer {name} was asked for, but the network has no such layer")
        chosen[name] = tensors[name].detach()
    return chosen


def state_spec(network: nn.Module, layers: Iterable[str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and numpy dtype of each of ``layers``.

    Raises:
        ProtocolError: a layer the network does not have.
    """
    return {
        name: (tuple(tensor.shape), torch.empty(0, dtype=tensor.dtype).numpy().dtype)
        for name, tensor in _chosen(network, layers).items()
    }


def check_state(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that received arrays can be loaded into ``network``.

    Raises:
        ProtocolError: unknown layer, different shape, or values that are not finite.
    """
    tensors = dict(named_tensors(network))
    for name, array in arrays.items():
        if name not in tensors:
            raise ProtocolError(f"layer {name} was received, but the network has no such layer")
        if tuple(array.shape) != tuple(tensors[name].shape):
            raise ProtocolError(
                f"layer {name} was received with shape {tuple(array.shape)}, "
                f"the network has {tuple(tensors[name].shape)}"
            )
    check_finite(arrays, "the server")


@torch.no_grad()
def load_state(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Overwrite the named tensors of ``network``; the others stay as they are (paper, algorithm 1).

    The arrays are trusted: call :func:`check_state` first.
    """
    tensors = dict(named_tensors(network))
    for name, values in as_tensors(arrays).items():
        tensors[name].copy_(values)


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Tensors in the memory of the arrays, which may be read-only views of shared memory; only to be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: _as_tensor(array) for name, array in arrays.items()}


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor in the array's memory; torch does not know NumPy's bfloat16, but its bits are the same."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
