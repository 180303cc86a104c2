"""nnU-Net's classes and one's own by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ConfigError
from fednnunet.planning.plans import find_planner
from fednnunet.training.trainer import find_trainer

OWN_CLASSES = """
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class PatientTrainer(nnUNetTrainer):
    pass

class Careless(nnUNetTrainer):
    def __init__(self, *args):
        super().__init__(*args)

class CarefulPlanner(ExperimentPlanner):
    pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_trainers.py").write_text(OWN_CLASSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_trainers"


@pytest.mark.parametrize(
    "name", ["nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainer_5epochs", "nnUNetTrainerDiceCELoss_noSmooth"]
)
def test_trainers_are_found_by_name(name: str) -> None:
    found = find_trainer(name)
    assert issubclass(found, nnUNetTrainer)
    assert found.__name__ == name


@pytest.mark.parametrize("name", ["ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncXL"])
def test_planners_are_found_by_name(name: str) -> None:
    assert issubclass(find_planner(name), ExperimentPlanner)


def test_own_classes_are_found_by_import_path(own_module: str) -> None:
    assert find_trainer(f"{own_module}.PatientTrainer").__name__ == "PatientTrainer"
    assert find_planner(f"{own_module}.CarefulPlanner").__name__ == "CarefulPlanner"


def test_trainers_in_nnunets_own_folder_for_extensions_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extended.py").write_text(OWN_CLASSES)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert find_trainer("PatientTrainer").__name__ == "PatientTrainer"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nnUNetTrainerNoMiroring", r"trainer.class=nnUNetTrainerNoMiroring .*near it: nnUNetTrainerNoMirroring"),
        ("no_such_package.Trainer", r"trainer.class=no_such_package.Trainer cannot be imported"),
        ("my_trainers.PatientTrainr", r"my_trainers has no PatientTrainr; near it: PatientTrainer"),
        ("my_trainers.Careless", r"trainer.class=my_trainers.Careless: its __init__ must name its parameters"),
        ("my_trainers.CarefulPlanner", r"is not derived from nnUNetTrainer"),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_mistaken_trainers_are_answered_with_what_to_do(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        find_trainer(name)


def test_unknown_planner_is_answered_with_near_names() -> None:
    with pytest.raises(ConfigError, match=r"model.planner=nnUNetPlannerResEncS .*near it: .*nnUNetPlannerResEnc[MLX]"):
        find_planner("nnUNetPlannerResEncS")
