"""Plans from the network name nothing but nnU-Net's own."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.errors import ProtocolError
from fednnunet.planning.received import check_received_plans
from fednnunet.training.trainer import build_network

RESAMPLED = ("data", "seg", "probabilities")


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
        "image_reader_writer": "SimpleITKIO",
        "configurations": {
            "2d": {
                "architecture": architecture,
                "patch_size": [8, 8],
                "preprocessor_name": "DefaultPreprocessor",
                "normalization_schemes": ["ZScoreNormalization"],
                **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in RESAMPLED},
                **{f"resampling_fn_{what}_kwargs": {"order": 1, "force_separate_z": None} for what in RESAMPLED},
            }
        },
    }


DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}


def test_network_is_built_from_received_plans(plans: dict[str, Any]) -> None:
    check_received_plans(plans, "2d")
    network = build_network(nnUNetTrainer, PlansManager(plans), "2d", DATASET)
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
        ("preprocessor_name", "os.system"),
        ("preprocessor_name", "ThreadPool"),
        ("label_manager", "pydoc.locate"),
        ("image_reader_writer", "subprocess.Popen"),
        ("normalization_schemes", "Type"),
        ("resampling_fn_seg", "partial"),
    ],
)
def test_plans_that_name_code_to_run_are_refused(plans: dict[str, Any], key: str, name: str) -> None:
    harmful = copy.deepcopy(plans)
    configuration = harmful["configurations"]["2d"]
    architecture = configuration["architecture"]
    for place in (harmful, configuration, architecture, architecture["arch_kwargs"]):
        if key in place:
            place[key] = [name] if isinstance(place[key], list) else name
    with pytest.raises(ProtocolError, match=re.escape(f"name {name}")):
        check_received_plans(harmful, "2d")


def test_arguments_that_are_no_plain_values_are_refused(plans: dict[str, Any]) -> None:
    plans["configurations"]["2d"]["resampling_fn_data_kwargs"]["order"] = {"a": [1]}
    with pytest.raises(ProtocolError, match="the argument order="):
        check_received_plans(plans, "2d")


@pytest.mark.parametrize(
    "malformed", [{}, {"configurations": {}}, {"configurations": {"2d": None}}, {"configurations": []}]
)
def test_malformed_plans_are_refused(malformed: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="hold no whole configuration 2d"):
        check_received_plans(malformed, "2d")
