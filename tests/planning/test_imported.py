"""Plans made elsewhere: by this nnU-Net, by an older one, by another run; and files that are none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.config.groups import ModelConfig
from fednnunet.errors import ConfigError
from fednnunet.planning.imported import check_channel_order, import_plans
from tests.planning.conftest import Plan

pytestmark = pytest.mark.usefixtures("nnunet_folders")


def take(staged: tuple[Path, str, dict[str, Any]], source: Path, node: str = "Oslo", **options: Any) -> dict[str, Any]:
    _, name, fingerprint = staged
    model = ModelConfig(planner="ExperimentPlanner", **options)
    return import_plans(name, fingerprint, source, node, 1, model, "2d")


def test_plans_of_another_dataset_are_taken_as_nnunet_moves_them(
    staged: tuple[Path, str, dict[str, Any]], plan: Plan, tmp_path: Path
) -> None:
    plans = plan(overrides={"UNet_base_num_features": 4})
    file = tmp_path / "nnUNetPlans.json"
    file.write_text(json.dumps(plans | {"dataset_name": "Dataset777_Other"}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plans.json").write_text(json.dumps({"Oslo": plans}))
    assert take(staged, file) == plans
    assert take(staged, tmp_path / "run") == plans
    assert take(staged, file, plans_name="moved")["plans_name"] == "moved"
    folder = staged[0] / "nnUNet_preprocessed" / staged[1]
    assert json.loads((folder / "moved.json").read_text())["dataset_name"] == staged[1]


OF_BEFORE_2_5 = {
    "UNet_class_name": lambda network: network["network_class_name"].rpartition(".")[2],
    "UNet_base_num_features": lambda network: network["arch_kwargs"]["features_per_stage"][0],
    "unet_max_num_features": lambda network: max(network["arch_kwargs"]["features_per_stage"]),
    "n_conv_per_stage_encoder": lambda network: network["arch_kwargs"]["n_conv_per_stage"],
    "n_conv_per_stage_decoder": lambda network: network["arch_kwargs"]["n_conv_per_stage_decoder"],
    "conv_kernel_sizes": lambda network: network["arch_kwargs"]["kernel_sizes"],
    "pool_op_kernel_sizes": lambda network: network["arch_kwargs"]["strides"],
    "num_pool_per_axis": lambda network: [network["arch_kwargs"]["n_stages"] - 1] * 2,
}


def old(plans: dict[str, Any]) -> dict[str, Any]:
    """As nnU-Net wrote plans before 2.5, with a configuration that inherits from another."""
    written = copy.deepcopy(plans)
    for configuration in written["configurations"].values():
        if "architecture" in configuration:
            network = configuration.pop("architecture")
            configuration |= {name: read(network) for name, read in OF_BEFORE_2_5.items()}
    return written


def test_plans_of_older_versions_are_taken_as_nnunet_takes_them(
    staged: tuple[Path, str, dict[str, Any]], plan: Plan, tmp_path: Path
) -> None:
    plans = plan()
    file = tmp_path / "nnUNetPlans.json"
    file.write_text(json.dumps(old(plans)))
    assert "architecture" not in file.read_text()
    assert take(staged, file) == plans, "what this version would have written"
    intensities = "foreground_intensity_properties_per_channel"
    renamed = {name: value for name, value in old(plans).items() if name != intensities}
    file.write_text(json.dumps({**renamed, "foreground_intensity_properties_by_modality": plans[intensities]}))
    assert take(staged, file) == plans


def test_a_configuration_of_older_plans_may_change_what_it_inherits(
    staged: tuple[Path, str, dict[str, Any]], plan: Plan, tmp_path: Path
) -> None:
    plans = old(plan())
    plans["configurations"]["wide"] = {"inherits_from": "2d", "UNet_base_num_features": 8, "batch_size": 3}
    theirs = PlansManager(copy.deepcopy(plans)).get_configuration("wide").configuration
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    taken = PlansManager(take(staged, tmp_path / "plans.json")).get_configuration("wide").configuration
    assert taken["architecture"] == theirs["architecture"]
    assert taken["architecture"]["arch_kwargs"]["features_per_stage"][0] == 8
    assert taken["batch_size"] == 3


def of_another_network(plans: dict[str, Any]) -> dict[str, Any]:
    written = old(plans)
    written["configurations"]["2d"]["UNet_class_name"] = "MyUNet"
    return written


def without(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(plans: dict[str, Any]) -> dict[str, Any]:
        written = old(plans)
        del written["configurations"]["2d"][field]
        return written

    return change


def of_two_normalizations(plans: dict[str, Any]) -> dict[str, Any]:
    plans["configurations"]["2d"]["normalization_schemes"] *= 2
    return plans


def of_two_channels(plans: dict[str, Any]) -> dict[str, Any]:
    return plans | {"foreground_intensity_properties_per_channel": {"0": {}, "1": {}}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (of_another_network, "cannot take configuration 2d: Unknown architecture MyUNet"),
        (without("patch_size"), "cannot take configuration 2d: it lacks patch_size; plan anew"),
        (without("spacing"), "cannot take configuration 2d: it lacks spacing; plan anew"),
        (
            lambda plans: {name: value for name, value in plans.items() if name != "transpose_forward"},
            "lacks transpose_forward: these are not whole plans",
        ),
        (of_two_normalizations, "for images of 2 channels; node Oslo has 1"),
        (of_two_channels, "for images of 2 channels; node Oslo has 1"),
        (lambda plans: {"Porto": plans}, r"no plans of node Oslo, only of Porto.*init.plans=\{Oslo: …\}"),
        (lambda plans: {"configurations": []}, "no plans of nnU-Net v2"),
        (lambda plans: None, "no plans of nnU-Net v2"),
        (lambda plans: {}, "no plans of nnU-Net v2"),
        (lambda plans: {"channel_names": {}, "labels": {}}, "is a dataset.json, not plans such as nnUNetPlans.json"),
        (lambda plans: {"spacings": [], "shapes_after_crop": []}, "is a fingerprint, not plans"),
        (lambda plans: [{"train": [], "val": []}], "is a splits_final.json, not plans"),
    ],
)
def test_plans_that_cannot_be_used_are_refused(
    staged: tuple[Path, str, dict[str, Any]],
    plan: Plan,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    problem: str,
) -> None:
    (tmp_path / "plans.json").write_text(json.dumps(change(plan())))
    with pytest.raises(ConfigError, match=problem):
        take(staged, tmp_path / "plans.json")


def test_files_that_are_no_plans(staged: tuple[Path, str, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        take(staged, tmp_path / "nowhere.json")
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        take(staged, tmp_path / "plans.json")
    torch.save({"network_weights": {}}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ConfigError, match=r"checkpoint_final.pth is a checkpoint, for init.weights"):
        take(staged, tmp_path / "checkpoint_final.pth")
    (tmp_path / "preprocessed").mkdir()
    (tmp_path / "preprocessed" / "nnUNetPlans.json").touch()
    with pytest.raises(
        ConfigError, match=r"there is no file .*; name one of the files in the folder: nnUNetPlans.json"
    ):
        take(staged, tmp_path / "preprocessed")


def test_plans_for_channels_in_another_order_are_refused() -> None:
    schemes = ["CTNormalization", "ZScoreNormalization"]
    plans = {"configurations": {"2d": {"normalization_schemes": schemes, "architecture": {}}}}
    check_channel_order(plans, "2d", ["CT", "PET"], Path("plans.json"))
    check_channel_order(plans, "2d", ["T1", "T2"], Path("plans.json"))  # somebody's own wish
    with pytest.raises(ConfigError, match=r"init\.plans=plans\.json normalises .* those of this run, ADC, CT, need"):
        check_channel_order(plans, "2d", ["ADC", "CT"], Path("plans.json"))
