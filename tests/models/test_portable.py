"""Whatever nnU-Net's own planners and trainers make can be handed over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fednnunet.config.groups import ModelConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import stage_dataset
from fednnunet.errors import DataError
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.models.open_archive import planned_network
from fednnunet.models.portable import portable_plans
from fednnunet.models.trained_model import TrainedModel
from fednnunet.planning.plans import make_plans
from tests.conftest import write_boxes

DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("portable")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, str(root / variable))
        patch.setattr("fednnunet.fingerprint.extract.MAX_FOREGROUND_VOXELS", 6e4)
        dataset = read_dataset(write_boxes(root / "raw", cases=2), "A")
        stage_dataset(dataset, root / "nnUNet_raw")
        yield dataset.name, extract_fingerprint(dataset)


def model_of(plans: dict[str, Any], configuration: str, trainer: str = "nnUNetTrainer") -> TrainedModel:
    portable = portable_plans(plans, configuration, 1, "plans")
    return TrainedModel(portable, DATASET, configuration, trainer, ("0",), None, None, "model", lambda fold: {})


@pytest.mark.parametrize("planner", ["nnUNetPlannerResEncM", "nnUNetPlanner_torchres"])
@pytest.mark.filterwarnings("ignore:WARNING")  # of another GPU memory than the planner's own
def test_plans_of_nnunets_planners_give_the_same_network(fingerprint: tuple[str, Any], planner: str) -> None:
    plans = make_plans(*fingerprint, ModelConfig(planner=planner), 8.0)
    for configuration in ("2d", "3d_fullres"):
        made = {
            name: layer.shape for name, layer in planned_network(model_of(plans, configuration)).state_dict().items()
        }
        whole = TrainedModel(plans, DATASET, configuration, "nnUNetTrainer", ("0",), None, None, "", lambda fold: {})
        assert made == {name: layer.shape for name, layer in planned_network(whole).state_dict().items()}


def test_trainer_that_builds_another_network_is_asked_for_it(fingerprint: tuple[str, Any]) -> None:
    plans = make_plans(*fingerprint, ModelConfig(planner="ExperimentPlanner"), 8.0)
    names = [name for name, _ in planned_network(model_of(plans, "2d", "nnUNetTrainerBN")).named_buffers()]
    assert any(name.endswith("running_mean") for name in names)  # of batch normalization


def test_plans_of_the_cascade_keep_what_they_inherit(fingerprint: tuple[str, Any]) -> None:
    plans = json.loads(
        json.dumps(
            make_plans(*fingerprint, ModelConfig(planner="ExperimentPlanner"), 8.0),
            default=lambda value: value.tolist(),
        )
    )
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    portable = portable_plans(plans, "3d_cascade_fullres", 1, "plans")["configurations"]
    assert list(portable) == ["3d_cascade_fullres"]
    assert portable["3d_cascade_fullres"]["previous_stage"] == "3d_lowres"
    assert portable["3d_cascade_fullres"]["patch_size"] == plans["configurations"]["3d_fullres"]["patch_size"]
    plans["configurations"]["3d_fullres"]["inherits_from"] = "3d_cascade_fullres"
    with pytest.raises(DataError, match="Circular dependency"):
        portable_plans(plans, "3d_cascade_fullres", 1, "plans")


def test_plans_of_an_own_preprocessor_stay(fingerprint: tuple[str, Any]) -> None:
    plans = make_plans(*fingerprint, ModelConfig(planner="ExperimentPlanner"), 8.0)
    plans["configurations"]["2d"]["preprocessor_name"] = "MyPreprocessor"
    with pytest.raises(DataError, match="preprocessor_name is MyPreprocessor, which is not one of nnU-Net's own"):
        portable_plans(plans, "2d", 1, "plans")
