"""``continue=FOLDER`` stands for the command of the run in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fednnunet.errors import ConfigError
from fednnunet.launch.resume import expand_continue
from fednnunet.lock import locked


def write_run(folder: Path, overrides: list[str], *, age: float = 0, finished: bool = False) -> Path:
    note = folder / ".hydra" / "overrides.yaml"
    note.parent.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), note)
    os.utime(note, (1e9 - age, 1e9 - age))
    if finished:
        (folder / "run.json").touch()
    return folder


def test_other_arguments_stay_as_they_are() -> None:
    assert expand_continue(["strategy=ffe", "-m"]) == ["strategy=ffe", "-m"]


def test_a_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["strategy=ffe", "fold=[0,1]"])
    assert expand_continue([f"continue={run}", "logger=wandb"]) == [
        "strategy=ffe",
        "fold=[0,1]",
        f"hydra.run.dir={run}",
        "logger=wandb",
    ]


def write_sweep(folder: Path) -> Path:
    folder.mkdir()
    overrides = {"task": ["experiment=demo", "seed=0,1"], "hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere"]}
    OmegaConf.save(OmegaConf.create({"hydra": {"overrides": overrides}}), folder / "sweep.yaml")
    return folder


def test_a_sweep_goes_on_in_its_folder(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    assert expand_continue([f"continue={sweep}"]) == [
        "--multirun",
        "experiment=demo",
        "seed=0,1",
        f"hydra.sweep.dir={sweep}",
    ]


def test_a_sweep_that_is_running_does_not_go_on(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    job = write_run(sweep / "job", ["seed=1"])
    with locked(job), pytest.raises(ConfigError, match="job is in use by process"):
        expand_continue([f"continue={sweep}"])
    assert expand_continue([f"continue={sweep}"])[-1] == f"hydra.sweep.dir={sweep}"


def test_last_is_the_newest_unfinished_run_or_its_sweep(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "run", ["seed=1"], age=10)
    write_run(tmp_path / "a" / "older", ["seed=2"], age=99)
    write_run(tmp_path / "a" / "finished", ["seed=3"], finished=True)
    assert expand_continue(["continue=last"], tmp_path) == ["seed=1", f"hydra.run.dir={run}"]
    sweep = write_sweep(tmp_path / "sweep")
    write_run(sweep / "job", ["seed=1"], age=5)
    assert expand_continue(["continue=last"], tmp_path)[-1] == f"hydra.sweep.dir={sweep}"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["continue=/nowhere"], "there is no run or sweep in this folder"),
        (["continue=last"], "there is no unfinished run"),
        (["continue=a", "continue=b"], "name one folder"),
    ],
)
def test_nothing_to_go_on_with(tmp_path: Path, arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        expand_continue(arguments, tmp_path)
