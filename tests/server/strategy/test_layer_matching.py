"""Which layers of different networks are averaged together."""

from __future__ import annotations

import itertools
from math import prod
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from fednnunet.server.strategy.layer_matching import AverageOver, Matching, match_layers, places_by_resolution
from fednnunet.training.network_state import layer_shapes

DOCUMENT = Path(__file__).parents[3] / "docs" / "explanation" / "layer_matching.md"
STAGES = {"ISPY1": 7, "ISPY2": 7, "DUKE": 8, "NACT": 7}
"""Of the networks in the paper's Table 1."""
Shapes = dict[str, list[int]]


def unet(stages: int, kind: type[nn.Module] = PlainConvUNet) -> nn.Module:
    """nnU-Net's 2d network with 32 to 512 features, without memory for its weights."""
    features = [min(512, 32 * 2**stage) for stage in range(stages)]
    with torch.device("meta"):
        return kind(
            1,
            stages,
            features,
            nn.Conv2d,
            3,
            [1] + [2] * (stages - 1),
            2,
            2,
            [2] * (stages - 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm2d,
            norm_op_kwargs={"affine": True},
            deep_supervision=True,
        )


@pytest.fixture(scope="module")
def table_1() -> dict[str, Shapes]:
    shapes = {stages: layer_shapes(unet(stages)) for stages in (7, 8)}
    return {node: shapes[stages] for node, stages in STAGES.items()}


def size(layers: Shapes) -> int:
    return sum(map(prod, layers.values()))


@pytest.mark.parametrize(("matching", "average_over"), itertools.product(("name", "resolution"), ("all", "groups")))
def test_the_documents_table_is_right(
    table_1: dict[str, Shapes], matching: Matching, average_over: AverageOver
) -> None:
    matched = match_layers(table_1, matching, average_over)
    parts = [
        100 * size({layer: table_1[node][layer] for layer in matched[node]}) / size(table_1[node]) for node in table_1
    ]
    row = f"| `{matching}` | `{average_over}` | " + " | ".join(f"{part:.1f} %" for part in parts) + " |"
    assert row in DOCUMENT.read_text()


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_places_are_at_one_resolution(kind: type[nn.Module]) -> None:
    """In networks of any depth, layers at one place have outputs of one size."""
    sizes: dict[str, set[int]] = {}
    for stages in (4, 6, 7):
        network = unet(stages, kind)
        places = places_by_resolution(layer_shapes(network))
        for name, module in network.named_modules():
            weight = f"{name}.weight"
            if weight in places and isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(
                    lambda module, inputs, output, place=places[weight]: sizes.setdefault(place, set()).add(
                        output.shape[-1]
                    )
                )
        network(torch.empty(1, 1, 256, 256, device="meta"))
    assert len(sizes) > 30
    assert {place: found for place, found in sizes.items() if len(found) > 1} == {}


def test_names_of_decoders_are_not_at_one_resolution() -> None:
    """What matching by resolution is for."""
    seven, eight = layer_shapes(unet(7)), layer_shapes(unet(8))
    name = "decoder.stages.2.convs.0.conv.weight"
    assert places_by_resolution(seven)[name] != places_by_resolution(eight)[name]
    top = [f"decoder.seg_layers.{stages - 2}.weight" for stages in (7, 8)]
    assert places_by_resolution(seven)[top[0]] == places_by_resolution(eight)[top[1]]


def test_each_layer_is_in_a_group_of_its_own(table_1: dict[str, Shapes]) -> None:
    for node, groups in match_layers(table_1, "resolution", "groups").items():
        assert len(set(groups.values())) == len(groups), node
        assert list(groups) == [layer for layer in table_1[node] if layer in groups]


@pytest.mark.parametrize(("argument", "value"), [("matching", "colour"), ("average_over", "most")])
def test_unknown_rules_are_refused(argument: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value}: must be"):
        match_layers({"A": {"w": (1,)}}, **{argument: value})
