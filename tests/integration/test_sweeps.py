"""Sweeps with every launcher, and with Optuna: failures are named, interruptions cost nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from omegaconf import OmegaConf

from tests.integration.conftest import command
from tests.integration.test_interruption import processes_of, wait_for_round
from tests.support.train_script import ROOT

TINY = ("dataset.centres=[{name: Oslo, dataset: 201}]", "strategy=local", "trainer.epochs=1", "trainer.iterations=2")

Sweep = Callable[..., subprocess.CompletedProcess[str]]


def sweep_command(raw: Path, folder: Path, *overrides: str) -> list[str]:
    return [*command(raw, folder, *TINY, f"hydra.sweep.dir={folder}", *overrides), "--multirun"]


@pytest.fixture
def sweep(raw: Path, tmp_path: Path) -> Sweep:
    """Run a sweep of tiny jobs into ``tmp_path/sweep``."""

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        arguments = sweep_command(raw, tmp_path / "sweep", *overrides)
        return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=300)

    return run


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.nightly)])
def test_jobs_in_other_processes_are_compared_and_failures_named(sweep: Sweep, tmp_path: Path, launcher: str) -> None:
    result = sweep(f"hydra/launcher={launcher}", "fold=0,7", "logger=[csv,tensorboard]")
    assert result.returncode == 2, result.stderr
    first, last = result.stderr.splitlines()[-2:]
    assert first == "error: 1 of 2 jobs failed:"
    assert last.startswith("  1_local_seed0: centre Oslo: ")
    assert "fold=7 is none of them" in last
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    assert set(pd.read_csv(tmp_path / "sweep" / "cases.csv")["fold"]) == {0}
    assert "1_local_seed0 did not finish" in (tmp_path / "sweep" / "report.html").read_text()
    assert list((tmp_path / "sweep" / "0_local_seed0" / "tensorboard" / "Oslo").glob("events.*"))


@pytest.mark.nightly
def test_a_killed_sweep_leaves_no_process_and_goes_on_with_what_is_left(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finished, other = folder / "0_local_seed0", folder / "1_local_seed0"
    arguments = sweep_command(raw, folder, "hydra/launcher=joblib", "trainer.epochs=1,40")
    process = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, text=True)
    wait_for_round(process, other, 2)
    while not (finished / "run.json").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    everyone = processes_of(process.pid)
    process.kill()
    _, alive = psutil.wait_procs(everyone, timeout=60)
    assert not alive
    assert not (other / "run.json").exists()
    before = os.stat(finished / "run.json").st_mtime_ns

    go_on = subprocess.run(
        [*command(raw, folder)[:2], f"continue={folder}"], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert go_on.returncode == 0, go_on.stderr
    assert os.stat(finished / "run.json").st_mtime_ns == before
    assert "0_local_seed0  " not in go_on.stdout, "nothing is done there"
    rounds = pd.read_csv(folder / "rounds.csv")
    assert sorted(rounds["round"]) == sorted([1, *range(1, 41)])
    assert rounds["strategy"].nunique() == 2


@pytest.mark.nightly
def test_optuna_takes_the_best_and_repeats_no_trial(sweep: Sweep, tmp_path: Path) -> None:
    search = ("hparams_search=dsc_optuna", "hydra.sweeper.n_trials=2", "trainer.initial_lr=interval(0.001,0.1)")
    result = sweep(*search)
    assert result.returncode == 0, result.stderr
    note = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    runs = sorted((tmp_path / "sweep").glob("*/run.json"))
    scores = [pd.read_csv(run.parent / "summary.csv")["dsc"].item() for run in runs]
    assert len(scores) == 2
    assert note.best_value == pytest.approx(max(scores))
    rates = [OmegaConf.load(run.parent / ".hydra" / "config.yaml").trainer.initial_lr for run in runs]
    assert note.best_params["trainer.initial_lr"] == rates[scores.index(max(scores))]
    assert f"best: trainer.initial_lr={note.best_params['trainer.initial_lr']}" in result.stdout

    times = [run.stat().st_mtime_ns for run in runs]
    (tmp_path / "sweep" / "optimization_results.yaml").unlink()
    assert sweep(*search).returncode == 0
    assert [run.stat().st_mtime_ns for run in runs] == times
    assert OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml") == note
