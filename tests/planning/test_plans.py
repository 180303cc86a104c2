"""nnU-Net's planner with its options, and what a centre without foreground can plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization import default_normalization_schemes

from fednnunet.config.groups import ModelConfig
from fednnunet.errors import ConfigError
from fednnunet.planning.plans import BY_THE_IMAGE, check_intensities, make_plans
from tests.planning.conftest import Plan

pytestmark = pytest.mark.usefixtures("nnunet_folders")

INTENSITIES = "foreground_intensity_properties_per_channel"


def test_options_of_the_planner(plan: Plan) -> None:
    plans = plan(plans_name="careful", overwrite_target_spacing=(2.0, 1.5, 1.5), overrides={"suppress_transpose": True})
    assert plans["plans_name"] == "careful"
    assert plans["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.5, 1.5]
    assert plans["configurations"]["2d"]["preprocessor_name"] == "DefaultPreprocessor"


def test_every_option_that_names_nothing_is_refused(plan: Plan) -> None:
    with pytest.raises(ConfigError, match=r"model.preprocessor=DefaultProcessor .*near it: DefaultPreprocessor"):
        plan(preprocessor="DefaultProcessor")
    with pytest.raises(ConfigError, match=r"model.overrides.UNet_bas_num: ExperimentPlanner has no such attribute"):
        plan(overrides={"UNet_bas_num": 3})


@pytest.mark.parametrize(("planner", "made_for"), [("ExperimentPlanner", 8.0), ("nnUNetPlannerResEncL", 24.0)])
def test_without_a_target_the_planner_takes_its_own(plan: Plan, planner: str, made_for: float) -> None:
    assert plan(None, planner)["configurations"] == plan(made_for, planner)["configurations"]


def test_the_target_decides_the_size(plan: Plan) -> None:
    overrides = {"max_dataset_covered": 1.0}
    sizes = [plan(memory, overrides=overrides)["configurations"]["2d"]["batch_size"] for memory in (0.05, 0.1)]
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=1)


def test_the_federations_number_of_cases_caps_the_batch(staged: tuple[Path, str, dict[str, Any]]) -> None:
    _, name, fingerprint = staged
    model = ModelConfig(planner="ExperimentPlanner")
    small, large = (
        make_plans(name, fingerprint, model, 8.0, num_training=number)["configurations"]["2d"]["batch_size"]
        for number in (6, 60)
    )
    assert large > small


# foreground --------------------------------------------------------------------------------------------


@pytest.fixture
def healthy(staged: tuple[Path, str, dict[str, Any]]) -> dict[str, Any]:
    """The fingerprint of the same centre without any foreground."""
    return staged[2] | {INTENSITIES: {"0": {}}}


@pytest.mark.parametrize("scheme", BY_THE_IMAGE)
def test_these_normalizations_of_nnunet_read_no_foreground_intensities(scheme: str) -> None:
    image = np.linspace(0, 255, 64, dtype=np.float32).reshape(4, 4, 4)
    assert np.isfinite(getattr(default_normalization_schemes, scheme)(False, {}).run(image)).all()


def test_a_centre_without_foreground_plans_where_its_images_are_normalised_by_themselves(
    staged: tuple[Path, str, dict[str, Any]], plan: Plan, healthy: dict[str, Any]
) -> None:
    plans = make_plans(staged[1], healthy, ModelConfig(planner="ExperimentPlanner"), 8.0)
    assert plans == plan() | {INTENSITIES: {"0": {}}}
    check_intensities(plans, "2d", {"0": "MRI"})


@pytest.mark.parametrize("scheme", ["CTNormalization", "MyNormalization"])
def test_where_normalization_needs_the_foreground_it_is_named(plan: Plan, scheme: str) -> None:
    plans = plan()
    plans["configurations"]["2d"]["normalization_schemes"] = [scheme]
    check_intensities(plans, "2d", {"0": "CT"})
    without = plans | {INTENSITIES: {"0": {}}}
    with pytest.raises(ConfigError, match=rf"^no case .* channel 0 \(CT\) is normalised by {scheme}, .*strategy=ffe"):
        check_intensities(without, "2d", {"0": "CT"})
