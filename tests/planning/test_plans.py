"""nnU-Net's planner with its options, and plans made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednnunet.config.groups import ModelConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import stage_dataset
from fednnunet.errors import ConfigError
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning.plans import import_plans, make_plans
from tests.conftest import write_boxes

Plan = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """nnU-Net's folders, a dataset in them, its fingerprint."""
    root = tmp_path_factory.mktemp("planning")
    dataset = read_dataset(write_boxes(root / "raw"), "A")
    stage_dataset(dataset, root / "nnUNet_raw")
    return root, dataset.name, extract_fingerprint(dataset)


@pytest.fixture(autouse=True)
def _folders(staged: tuple[Path, str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(staged[0] / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.fixture
def plan(staged: tuple[Path, str, dict[str, Any]]) -> Plan:
    _, name, fingerprint = staged

    def make(memory: float | None = 8.0, planner: str = "ExperimentPlanner", **options: Any) -> dict[str, Any]:
        return make_plans(name, fingerprint, ModelConfig(planner=planner, **options), memory)

    return make


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


def take(staged: tuple[Path, str, dict[str, Any]], source: Path, node: str = "Oslo", **options: Any) -> dict[str, Any]:
    _, name, fingerprint = staged
    return import_plans(name, fingerprint, source, node, 1, ModelConfig(planner="ExperimentPlanner", **options))


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


def old(plans: dict[str, Any]) -> dict[str, Any]:
    """As nnU-Net wrote plans before 2.5."""
    plain = plans["configurations"]["2d"] | {"UNet_class_name": "PlainConvUNet"}
    del plain["architecture"]
    return plans | {"configurations": {"2d": plain}}


def of_two_channels(plans: dict[str, Any]) -> dict[str, Any]:
    return plans | {"foreground_intensity_properties_per_channel": {"0": {}, "1": {}}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (old, "made by another version of nnU-Net's planner .*2d has no architecture"),
        (of_two_channels, "for images of 2 channels; node Oslo has 1"),
        (lambda plans: {"Porto": plans}, r"no plans of node Oslo, only of Porto.*init.plans=\{Oslo: …\}"),
        (lambda plans: {"configurations": []}, "no plans of nnU-Net v2"),
        (lambda plans: None, "no plans of nnU-Net v2"),
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
