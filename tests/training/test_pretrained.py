"""Weights to start from, by nnU-Net's rule."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from fednnunet.errors import ConfigError
from fednnunet.training.final_checkpoint import FINAL, find_checkpoint
from fednnunet.training.pretrained import load_pretrained


def network(features: tuple[int, ...] = (4, 8), classes: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    stages = len(features)
    return PlainConvUNet(
        1, stages, features, nn.Conv2d, 3, (1, 2, 2)[:stages], 1, classes, 1, conv_bias=True, deep_supervision=True
    )


def save(path: Path, model: nn.Module, **more: Any) -> Path:
    """What ``nnUNetTrainer.save_checkpoint`` writes, as far as it matters here."""
    checkpoint = {
        "network_weights": model.state_dict(),
        "logging": {"mean_fg_dice": [np.float64(0.5)], "dice": [[np.float32(0.25)]], "curve": np.arange(3.0)},
        "init_args": {
            "plans": {"dataset_name": "Dataset077_Liver"},
            "configuration": "2d",
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


def trainer(model: nn.Module, *channels: str) -> Any:
    names = {str(number): name for number, name in enumerate(channels or ("T1",))}
    return SimpleNamespace(network=model, dataset_json={"channel_names": names})


@pytest.mark.parametrize("field", ["channel_names", "modality"])
def test_the_same_channels_in_another_order_are_refused(tmp_path: Path, field: str) -> None:
    described = {field: {"0": "T2", "1": "T1"}}
    path = save(tmp_path / "x.pth", network(), init_args={"dataset_json": described})
    with pytest.raises(
        ConfigError, match=r"x\.pth .*takes the channels T2, T1, this run T1, T2: its first layer would"
    ):
        load_pretrained(trainer(network(), "T1", "T2"), path)
    load_pretrained(trainer(network(), "T2", "T1"), path)
    load_pretrained(trainer(network(), "CT", "PET"), path)  # others than those are taken as they come


def test_all_but_the_heads_are_taken_as_nnunet_does(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", network(classes=3, seed=1))
    ours, theirs = network(), network()
    load_pretrained(trainer(ours), path)
    load_pretrained_weights(theirs, str(path))
    for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(ours.state_dict()[first], network(classes=3, seed=1).state_dict()[first])
    heads = ours.decoder.seg_layers[0].weight
    assert torch.equal(heads, network().decoder.seg_layers[0].weight), "the heads stay as initialised"


def test_a_compiled_network_takes_them_too(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", network(seed=1))
    ours = network()
    load_pretrained(trainer(torch.compile(ours, backend="eager")), path)
    assert torch.equal(
        ours.encoder.stages[0][0].convs[0].conv.weight, network(seed=1).encoder.stages[0][0].convs[0].conv.weight
    )


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-was-done"),))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no checkpoint", "cannot be read as a checkpoint"),
        (b"", "cannot be read as a checkpoint"),
        (pickle.dumps({"network_weights": Harmful()}), "cannot be read as a checkpoint"),
    ],
)
def test_files_that_are_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        load_pretrained(trainer(network()), path)
    assert not Path("harm-was-done").exists()


def test_a_checkpoint_with_anything_but_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "x.pth", network(), extra=Harmful())
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        load_pretrained(trainer(network()), path)
    assert not Path("harm-was-done").exists()


def test_other_files_of_torch_are_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="not a checkpoint of nnU-Net"):
        load_pretrained(trainer(network()), tmp_path / "x.pth")


def test_layers_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", network(features=(4, 8, 8), seed=1))
    ours = network(features=(6, 8))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_pretrained(trainer(ours), path)
    for part in (
        "(Dataset077_Liver, nnUNetTrainer, 2d)",
        "encoder.stages.0.0.convs.0.conv.weight is (4, 1, 3, 3) there and (6, 1, 3, 3) here",
        "init.plans=",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_missing_layers_are_named(tmp_path: Path) -> None:
    weights = {name: value for name, value in network().state_dict().items() if "stages.1" not in name}
    path = save(tmp_path / "x.pth", network(), network_weights=weights)
    with pytest.raises(ConfigError, match=r"encoder\.stages\.1\.\S+ is missing"):
        load_pretrained(trainer(network()), path)


def test_a_run_gives_each_node_its_own_checkpoint(tmp_path: Path) -> None:
    results = "nnUNet_results/Dataset001_A/nnUNetTrainer__nnUNetPlans__2d"
    for fold in (0, 3):
        save(tmp_path / "run" / "nodes" / "Oslo" / results / f"fold_{fold}" / FINAL, network())
    oslo = tmp_path / "run" / "nodes" / "Oslo" / results
    assert find_checkpoint(tmp_path / "run", "Oslo", 3) == oslo / "fold_3" / FINAL
    assert find_checkpoint(tmp_path / "run", "Oslo", 1) == oslo / "fold_0" / FINAL
    assert find_checkpoint(oslo / "fold_3", "Porto", 1) == oslo / "fold_3" / FINAL
    assert find_checkpoint(oslo / "fold_3" / FINAL, "Porto", 1) == oslo / "fold_3" / FINAL
    with pytest.raises(ConfigError, match=r"of node Porto, only of Oslo; name one by node: init.weights={Porto"):
        find_checkpoint(tmp_path / "run", "Porto", 0)
    with pytest.raises(ConfigError, match="neither a checkpoint, nor a folder"):
        find_checkpoint(tmp_path / "nowhere", "Oslo", 0)
