"""What a sweep knows of its jobs, whichever process ran them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from fednnunet.errors import ConfigError
from fednnunet.launch.sweep_callback import SweepCallback, record_failure, report_failures

MakeRun = Callable[..., Path]
LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def config(sweep: Path, run: Path | None = None, **logger: Any) -> DictConfig:
    hydra = {
        "sweep": {"dir": str(sweep)},
        "runtime": {"output_dir": str(run)},
        "launcher": {"_target_": LAUNCHER},
        "sweeper": {"_target_": SWEEPER},
    }
    return OmegaConf.create({"hydra": hydra, "logger": logger})


def start(sweep: Path, *runs: Path) -> SweepCallback:
    """Begin a sweep of these runs, each told to a copy, as a process of its own has it."""
    jobs = SweepCallback()
    jobs.on_multirun_start(config=config(sweep))
    for run in runs:
        copy.deepcopy(jobs).on_job_start(config=config(sweep, run), task_function=lambda _: None)
    return jobs


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


def test_a_sweep_compares_its_own_jobs_only(make_run: MakeRun, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older, run = make_run("ffe"), make_run("asym")
    start(sweep, older)
    start(sweep, run).on_multirun_end(config=config(sweep))
    assert set(pd.read_csv(sweep / "cases.csv")["strategy"]) == {"asym"}
    assert "report.html" in capsys.readouterr().out


def test_a_job_that_failed_is_named_with_its_reason(
    make_run: MakeRun, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, failed = make_run("asym"), make_run("ffe")
    for name in ("run.json", "cases.csv", "rounds.csv"):
        (failed / name).unlink()
    jobs = start(sweep, run, failed)
    record_failure(failed, ConfigError("networks differ"))
    jobs.on_multirun_end(config=config(sweep))
    assert (jobs.jobs, jobs.failed) == (2, {failed.name: "networks differ"})
    printed = capsys.readouterr()
    assert f"error: {failed.name}: networks differ" in printed.err
    assert f"{failed.name} did not finish: it trained no round and has no scores (networks differ)." in printed.out
    assert "networks differ" in (sweep / "report.html").read_text()


def test_jobs_that_failed_for_one_reason_are_named_together_and_nothing_is_compared(
    make_run: MakeRun, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(name) for name in ("local", "asym")]
    for run in runs:
        for name in ("run.json", "cases.csv", "rounds.csv"):
            (run / name).unlink()
    jobs = start(sweep, *runs)
    for run in runs:
        record_failure(run, ConfigError("no data"))
    jobs.on_multirun_end(config=config(sweep))
    assert report_failures() == 2
    printed = capsys.readouterr()
    first, second = (run.name for run in runs)
    assert printed.err.splitlines() == [
        f"error: {first}: no data",
        f"error: {second}: as {first}",
        "error: all 2 jobs failed, for this reason",
    ]
    assert printed.out == ""
    assert not (sweep / "report.html").exists()


def test_reasons_that_another_process_has_said_are_named_at_the_end(
    make_run: MakeRun, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(name) for name in ("local", "asym")]
    jobs = start(sweep, *runs)
    for run in runs:
        record_failure(run, ConfigError("no data"))
    jobs.told.clear()  # as if the jobs had run in processes of their own
    jobs.on_multirun_end(config=config(sweep))
    capsys.readouterr()
    assert report_failures() == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: 2 of 2 jobs failed:", f"  {runs[1].name}, {runs[0].name}: no data"]


def test_a_bug_in_one_job_shows_its_traceback(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError("no node")
    except ZeroDivisionError as error:
        record_failure(make_run("ffe"), error)
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1].endswith("ZeroDivisionError: no node")


def test_a_job_that_is_tried_again_forgets_its_failure(make_run: MakeRun, sweep: Path) -> None:
    run = make_run("asym")
    record_failure(run, ConfigError("no disk"))
    jobs = start(sweep, run)
    jobs.on_multirun_end(config=config(sweep))
    assert jobs.failed == {}


def test_the_sweeps_command_is_kept_for_going_on(sweep: Path) -> None:
    start(sweep)
    assert OmegaConf.load(sweep / "sweep.yaml").hydra.sweep.dir == str(sweep)


def test_trackers_get_the_comparison(make_run: MakeRun, sweep: Path) -> None:
    run = make_run("asym")
    wandb = {
        "_target_": "fednnunet.tracking.wandb_tracker.WandbTracker",
        "project": "x",
        "mode": "offline",
        "folder": "${paths.run}",  # there is none in a sweep
    }
    start(sweep, run).on_multirun_end(config=config(sweep, wandb=wandb))
    assert list(sweep.glob("wandb/offline-run-*/*.wandb"))
