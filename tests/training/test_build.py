"""Devices, and plans from the network."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config import NodeConfig
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.training.build import (
    build_lightning_trainer,
    build_network,
    check_device,
    check_received_plans,
    memory_fraction,
    resolve_device,
)

NODE = NodeConfig(
    device="auto", precision="auto", augmentation_workers=0, preprocessing_workers=1, threads=1, compile=False
)


def test_unknown_device_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match=r"node.device=mps, but torch sees no Apple GPU"):
            resolve_device("mps")


@pytest.mark.parametrize(
    ("device", "change", "problem"),
    [
        ("mps", {"precision": "16-mixed"}, "node.precision=16-mixed does not work on mps"),
        ("mps", {"devices": 2}, "node.devices=2, but torch sees 1 GPU here"),
    ],
)
def test_what_a_device_can_not_do_is_refused(device: str, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_device(NODE.model_copy(update=change), torch.device(device))


def test_what_a_cpu_can_do_is_not_refused() -> None:
    check_device(NODE.model_copy(update={"precision": "bf16-mixed", "devices": 2}), torch.device("cpu"))


def test_memory_target_is_a_part_of_the_gpu() -> None:
    assert memory_fraction(8, 32 * 2**30) == 0.25
    assert memory_fraction(80, 32 * 2**30) == 1.0


@pytest.fixture
def plans() -> dict[str, Any]:
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3], [3, 3]],
            "strides": [[1, 1], [2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return {
        "dataset_name": "Dataset001_A",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {"2d": {"architecture": architecture, "patch_size": [8, 8]}},
    }


DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}


def test_network_is_built_from_received_plans(plans: dict[str, Any]) -> None:
    network = build_network(nnUNetTrainer, check_received_plans(plans, "2d"), "2d", DATASET)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("network_class_name", "os.system"),
        ("network_class_name", "subprocess.Popen"),
        ("network_class_name", "dynamic_network_architectures.architectures.unet.os.system"),
        ("conv_op", "builtins.eval"),
        ("nonlin", "torch.hub.load"),
        ("norm_op", "torch.nn.modules.module.os.system"),
    ],
)
def test_plans_that_name_code_to_run_are_refused(plans: dict[str, Any], key: str, name: str) -> None:
    harmful = copy.deepcopy(plans)
    architecture = harmful["configurations"]["2d"]["architecture"]
    (architecture if key == "network_class_name" else architecture["arch_kwargs"])[key] = name
    with pytest.raises(ProtocolError, match=f"name {name}"):
        check_received_plans(harmful, "2d")


@pytest.mark.parametrize(
    "malformed", [{}, {"configurations": {}}, {"configurations": {"2d": None}}, {"configurations": []}]
)
def test_malformed_plans_are_refused(malformed: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="hold no configuration 2d"):
        check_received_plans(malformed, "2d")


def test_the_tasks_of_a_slurm_job_are_not_the_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    nnunet = SimpleNamespace(device=torch.device("cpu"), is_ddp=False, num_epochs=3, current_epoch=1)
    module: Any = SimpleNamespace(nnunet=nnunet, automatic_optimization=True)
    assert build_lightning_trainer(module, NODE, [], tmp_path).world_size == 1
