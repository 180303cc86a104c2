"""What is exchanged of a network, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.training.network_state import (
    buffer_names,
    check_state,
    freeze_other_layers,
    layer_shapes,
    load_state,
    read_state,
    state_spec,
    trained_parameters,
    unwrap,
)


def build_network() -> nn.Module:
    return PlainConvUNet(
        1,
        3,
        (4, 8, 8),
        nn.Conv2d,
        3,
        (1, 2, 2),
        (2, 2, 2),
        2,
        (2, 2),
        conv_bias=True,
        norm_op=nn.BatchNorm2d,
        deep_supervision=True,
    )


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network()


def read(network: nn.Module) -> dict[str, np.ndarray]:
    layers = list(layer_shapes(network))
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in state_spec(network, layers).items()}
    read_state(network, layers, arrays)
    return arrays


def test_every_tensor_travels_once(network: nn.Module) -> None:
    pointers = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert len(layer_shapes(network)) == len(pointers) < len(network.state_dict())


def test_buffers_are_what_no_optimizer_trains(network: nn.Module) -> None:
    trained = {id(parameter) for parameter in network.parameters()}
    state = network.state_dict(keep_vars=True)
    expected = {name for name in layer_shapes(network) if id(state[name]) not in trained}
    assert set(buffer_names(network)) == expected
    assert {name.rpartition(".")[2] for name in expected} == {"running_mean", "running_var", "num_batches_tracked"}
    assert buffer_names(torch.compile(network, backend="eager")) == buffer_names(network)


def test_state_read_from_one_network_makes_another_equal(network: nn.Module) -> None:
    other = build_network()
    arrays = read(network)
    for array in arrays.values():
        array.flags.writeable = False
    check_state(other, arrays)
    load_state(other, arrays)
    for (name, ours), theirs in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_layers_are_loaded_exactly(network: nn.Module, dtype: str) -> None:
    arrays = {name: a.astype(dtype) if a.dtype == np.float32 else a for name, a in read(network).items()}
    for array in arrays.values():
        array.flags.writeable = False
    check_state(network, arrays)
    load_state(network, arrays)
    for name, array in read(network).items():
        assert np.array_equal(array, arrays[name].astype(array.dtype)), name


def test_what_is_not_finite_is_refused_in_two_bytes_too(network: nn.Module) -> None:
    bad = {"encoder.stages.0.0.convs.0.conv.bias": np.full(4, np.nan).astype("bfloat16")}
    with pytest.raises(ProtocolError, match="not finite"):
        check_state(network, bad)


def test_names_are_free_of_wrappers(network: nn.Module) -> None:
    compiled = torch.compile(network, backend="eager")
    assert next(iter(compiled.state_dict())).startswith("_orig_mod.")
    assert layer_shapes(compiled) == layer_shapes(network)
    assert unwrap(compiled) is network


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"nobody": np.zeros(1, dtype=np.float32)}, "nobody was received"),
        (
            {"encoder.stages.0.0.convs.0.conv.bias": np.zeros(9, dtype=np.float32)},
            r"shape \(9,\), the network has \(4,\)",
        ),
        ({"encoder.stages.0.0.convs.0.conv.bias": np.full(4, np.nan, dtype=np.float32)}, "not finite"),
        ({"encoder.stages.0.0.convs.0.conv.bias": np.full(4, np.inf, dtype=np.float32)}, "not finite"),
    ],
)
def test_bad_arrays_are_refused(network: nn.Module, change: dict[str, np.ndarray], problem: str) -> None:
    received = read(network) | change
    with pytest.raises(ProtocolError, match=problem):
        check_state(network, received)


def test_a_missing_layer_cannot_be_read(network: nn.Module) -> None:
    with pytest.raises(ProtocolError, match="no such layer"):
        state_spec(network, ["decoder.nobody"])


def test_only_the_layers_named_are_trained() -> None:
    network = build_network()
    freeze_other_layers(network, ["norm", "seg_layers", "decoder.stages.1"])
    trained = set(trained_parameters(network))
    names = {name for name, _ in network.named_parameters()}
    assert trained == {
        name for name in names if {"norm", "seg_layers"} & set(name.split(".")) or name.startswith("decoder.stages.1.")
    }
    assert {"encoder.stages.0.0.convs.0.conv.weight", "decoder.stages.0.convs.0.conv.weight"} < names - trained
    assert "decoder.stages.1.convs.0.conv.weight" in trained


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (["norm", "heads"], r"no layer has the part heads; layers are called encoder\.stages"),
        (["norm"], r"decoder\.seg_layers\.0\.weight starts anew .*; add seg_layers"),
        (["seg_layers"], r"norm\.running_mean follows the images, so it cannot stay"),
    ],
)
def test_layers_that_cannot_stay_are_refused(parts: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        freeze_other_layers(build_network(), parts)
