"""What a run leaves in its folder, and at its server, when it is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fednnunet.config.hydra_datasets import CONF
from fednnunet.config.run import RunConfig, read_config
from fednnunet.errors import ConfigError
from fednnunet.launch.resume import expand_continue
from fednnunet.launch.run_folder import result_settings
from fednnunet.lock import locked
from fednnunet.run import run
from tests.support.train_script import run_local

CUSTOM = ["dataset=custom", "dataset.centres=[{name: Oslo, dataset: 101}, {name: Porto, dataset: 102}]", "seed=3"]


def configured(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", overrides=list(overrides)))


def files_of(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """Folder of a run that was interrupted in its first round."""
    folder = tmp_path / "run"
    overrides = [*CUSTOM, f"dataset.raw_folder={tmp_path}"]
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    settings = result_settings(configured(*overrides, f"paths.run={folder}"))
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_a_refused_command_changes_nothing_of_a_run(interrupted: Path) -> None:
    before = files_of(interrupted)
    result = run_local([sys.executable, "train.py", f"continue={interrupted}", "trainer.epochs=9"])
    assert result.returncode == 2
    assert f"{interrupted} holds a run with trainer.epochs=None, not 9" in result.stderr
    assert files_of(interrupted) == before
    again = run_local([sys.executable, "train.py", f"continue={interrupted}"])
    assert "holds a run with" not in again.stderr, "it goes on to look for the data"
    assert again.returncode == 2
    assert files_of(interrupted) == before


def test_a_refused_command_changes_nothing_of_a_sweep(interrupted: Path) -> None:
    sweep = interrupted.parent
    overrides = {"task": [*CUSTOM, f"dataset.raw_folder={sweep}"], "hydra": ["hydra.sweep.subdir=run"]}
    OmegaConf.save(OmegaConf.create({"hydra": {"overrides": overrides}}), sweep / "sweep.yaml")
    before = (sweep / "sweep.yaml").read_text()
    result = run_local([sys.executable, "train.py", f"continue={sweep}", "trainer.epochs=9"])
    assert result.returncode == 2
    assert "holds a run with trainer.epochs=None, not 9" in result.stderr
    assert (sweep / "sweep.yaml").read_text() == before


def test_sigterm_ends_it_as_ctrl_c_does_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*arguments: object) -> None:
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "overrides.yaml").write_text("[]")
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    monkeypatch.setattr("fednnunet.run.run", train)
    result = run_local([sys.executable, "train.py", *CUSTOM, f"hydra.run.dir={tmp_path}"])
    assert result.returncode == 143
    (line,) = result.stderr.splitlines()
    assert line.startswith("ended by SIGTERM; the last checkpoints are kept. To resume: python train.py continue=")


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.EROFS, "{folder} cannot be written: {reason}; make it writable"),
        (errno.EACCES, "{folder} cannot be written: {reason}; make it writable"),
        (errno.ENOSPC, "{folder}/rounds.csv: {reason}; make room"),
        (errno.EDQUOT, "{folder}/rounds.csv: {reason}; make room"),
    ],
)
def test_a_folder_that_cannot_be_written_any_more_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, problem: str
) -> None:
    """In the middle of a run."""
    rounds = tmp_path / "rounds.csv"

    def fail(config: RunConfig) -> None:
        raise OSError(number, os.strerror(number), str(rounds))

    monkeypatch.setattr("fednnunet.run.prepare_centres", fail)
    with pytest.raises(ConfigError) as caught:
        run(configured(*CUSTOM, f"paths.run={tmp_path}"), "python train.py")
    expected = problem.format(folder=tmp_path, reason=os.strerror(number))
    assert str(caught.value) == f"{expected}, and resume with continue={tmp_path}"


def test_what_a_run_makes_is_its_users_alone(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder that others could read before."""
    interrupted.chmod(0o755)

    class Stopped(Exception):
        pass

    def stop(config: RunConfig) -> None:
        raise Stopped

    monkeypatch.setattr("fednnunet.run.prepare_centres", lambda config: {})
    monkeypatch.setattr("fednnunet.run.node_settings", lambda config, folders: [])
    monkeypatch.setattr("fednnunet.run.server_settings", stop)
    before = os.umask(0o022)
    try:
        overrides = OmegaConf.load(interrupted / ".hydra" / "overrides.yaml")
        with pytest.raises(Stopped):
            run(configured(*overrides, f"paths.run={interrupted}", "logger=tensorboard"), "python train.py")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert stat.S_IMODE(interrupted.stat().st_mode) == 0o700
    assert stat.S_IMODE((interrupted / "train.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((interrupted / "config.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "trainer.class=nnUNetTrainerBNN",
            r"trainer.class=nnUNetTrainerBNN is not a class .*; near it: nnUNetTrainerBN,",
        ),
        ("trainer.class=zzz", r"trainer.class=zzz is not a class that nnU-Net finds; near it: nnUNetTrainer \("),
        (
            "model.planner=ResEncUNetPlaner",
            "model.planner=ResEncUNetPlaner is not a class .*; near it: ResEncUNetPlanner,",
        ),
        ("init.plans=nowhere.json", "init.plans: there is no file nowhere.json"),
        ("init.plans={Porto: nowhere.json}", "init.plans: there is no file nowhere.json"),
        (
            "init.weights=nowhere",
            "init.weights=nowhere is neither a checkpoint, nor a folder with",
        ),
        ("init.previous_stage=nowhere", "init.previous_stage: there is no file nowhere"),
    ],
)
def test_names_and_files_that_are_not_there_are_told_before_nodes_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, problem: str
) -> None:
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.setattr("fednnunet.run.prepare_centres", lambda config: pytest.fail("too late"))
    with pytest.raises(ConfigError, match=problem):
        run(configured(*CUSTOM, override, f"paths.run={tmp_path}"), "python train.py")


def test_a_damaged_note_of_a_run_is_named(interrupted: Path) -> None:
    (interrupted / "config.json").write_text('{"seed": 3, "fol')
    result = run_local([sys.executable, "train.py", f"continue={interrupted}"])
    assert result.returncode == 2
    problem = f"{interrupted}/config.json is damaged; choose another hydra.run.dir or remove the folder"
    assert result.stderr == f"error: {problem}\n"


def test_a_disk_that_is_full_at_the_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of the run is there."""

    def no_room(*arguments: object, **options: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path / "run"))

    monkeypatch.setattr("hydra.core.utils.Path.mkdir", no_room)
    result = run_local([sys.executable, "train.py", *CUSTOM, f"hydra.run.dir={tmp_path}/run"])
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path}/run: Disk quota exceeded; make room\n"


def test_a_second_run_leaves_the_server_and_the_last_run_as_they_are(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another ``train.py`` runs at the same server."""
    state, second = tmp_path / "state", tmp_path / "second"
    monkeypatch.setattr("fednnunet.deployment.server.run_server_app.Operator", lambda state: None)
    state.mkdir()
    (state / "run_status.json").write_text("of the first")
    config = configured(*CUSTOM, "federation=deployment", f"federation.server={state}", f"paths.run={second}")
    command = {second / ".hydra" / "overrides.yaml": "[]"}
    with locked(state / "run"), pytest.raises(ConfigError, match="is in use by process"):
        run(config, "python train.py", command_files=command)
    assert (state / "run_status.json").read_text() == "of the first"
    assert not second.exists()
    assert expand_continue(["continue=last"], tmp_path)[-1] == f"hydra.run.dir={interrupted}"


def test_a_run_out_of_gpu_memory_goes_on_without_its_cap_but_not_with_other_plans(tmp_path: Path) -> None:
    def settings(*overrides: str) -> dict[str, Any]:
        return result_settings(configured(*overrides, f"paths.run={tmp_path}"))

    assert settings() == settings("gpu_memory.cap=false")
    assert settings() != settings("gpu_memory.gb=4")
