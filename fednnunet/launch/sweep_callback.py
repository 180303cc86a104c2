"""The jobs of one command, whichever processes run them: which they are, which failed, how they compare."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fednnunet.errors import FednnUNetError
from fednnunet.files import DISK_FULL, write_atomically
from fednnunet.launch.command_files import write_new
from fednnunet.processes import end_with
from fednnunet.run_files import ERROR_FILE, OVERRIDES_FILE, ROUNDS_FILE, SWEEP_FILE

# conf/hydra has options of the plugins' names on purpose: they set what the plugins leave open.
warnings.filterwarnings("ignore", r"\n'hydra/\w+/\w+' is validated against ConfigStore schema")

MEMBER = Path(".hydra") / "sweep.txt"
"""In a run's folder: which start of a sweep it was a job of."""
OPTIMISED = "optimization_results.yaml"
"""What the Optuna sweeper leaves in a sweep's folder."""
WATCH_SECONDS = 1.0
END_SECONDS = 10.0
"""For a job to end its nodes."""


def record_failure(folder: Path, error: Exception) -> None:
    """Say why a job of a sweep failed, here and in its folder, where the end of the sweep finds it.

    A reason for which another job has failed before is said once: the job is named.
    """
    if not isinstance(error, FednnUNetError):
        traceback.print_exc()
    reason = str(error) if isinstance(error, FednnUNetError) else f"{type(error).__name__}: {error}"
    earlier = _failed_before(folder, reason)
    write_atomically(folder / ERROR_FILE, reason)
    print(f"error: {folder.name}: {f'as {earlier}' if earlier else reason}", file=sys.stderr)
    if jobs := SweepCallback.current:
        jobs.told.add(reason)


def _failed_before(folder: Path, reason: str) -> str | None:
    """The first job of the same start of the sweep that has failed for this reason."""
    start = _start_of(folder)
    for path in sorted(folder.parent.glob(f"*/{ERROR_FILE}"), key=lambda path: path.stat().st_mtime_ns):
        if start and _start_of(path.parent) == start and path.read_text() == reason:
            return path.parent.name
    return None


def _start_of(folder: Path) -> str | None:
    return path.read_text() if (path := folder / MEMBER).is_file() else None


def report_failures() -> int:
    """Name the jobs of this command's sweep that failed, if any; the exit code."""
    jobs = SweepCallback.current
    if jobs is None or not jobs.failed:
        return 0
    reasons = dict.fromkeys(jobs.failed.values())
    if len(reasons) == 1 and len(jobs.failed) == jobs.jobs and jobs.told.issuperset(reasons):
        print(f"error: all {jobs.jobs} jobs failed, for this reason", file=sys.stderr)
        return 2
    print(f"error: {len(jobs.failed)} of {jobs.jobs} jobs failed:", file=sys.stderr)
    for reason in reasons:
        names = [name for name, why in jobs.failed.items() if why == reason]
        print(f"  {', '.join(names)}: {reason}", file=sys.stderr)
    return 2


def resume_hint(program: Sequence[str]) -> str:
    """The command that resumes the run, or sweep, that was interrupted; empty where it had not begun."""
    jobs = SweepCallback.current
    if jobs is None or jobs.folder is None:
        return ""
    if not any((jobs.folder / file).is_file() for file in (OVERRIDES_FILE, SWEEP_FILE)):
        return ""
    return f" To resume: {shlex.join([*program, f'continue={os.path.relpath(jobs.folder)}'])}"


def folder_problem(error: Exception) -> str:
    """Why the folder of the run, or sweep, cannot be written; empty where it can be, or for any other error."""
    jobs = SweepCallback.current
    if jobs is None or jobs.folder is None or not isinstance(error, OSError):
        return ""
    if error.errno in DISK_FULL:
        return f"{error.filename or jobs.folder}: {error.strerror}; make room"
    if jobs.folder.is_dir() and os.access(jobs.folder, os.W_OK):
        return ""
    advice = "choose another hydra.run.dir (of a sweep: hydra.sweep.dir)"
    return f"{jobs.folder} cannot be written: {error.strerror}; {advice}"


class SweepCallback(Callback):
    """Hydra callback: knows the folder of the run or sweep, and compares a sweep's runs when it ends.

    Hydra calls ``on_job_start`` in the process of the job, on a copy of this object; everything else in the
    process of the command.

    Attributes:
        current: Callback of this command.
        command: In a job's process: the file that keeps the sweep's command, and its text.
        folder: Folder of the run, or of the sweep.
        jobs: Number of jobs of a sweep that has ended.
        failed: Jobs that failed, and why.
        told: Reasons for which jobs of this process have failed, which are said already.
    """

    current: ClassVar[SweepCallback | None] = None
    command: ClassVar[dict[Path, str]] = {}

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.jobs = 0
        self.failed: dict[str, str] = {}
        self.told: set[str] = set()
        self._start = ""
        self._command: dict[Path, str] = {}
        self._pid = os.getpid()
        SweepCallback.current = self

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folder of the run; without a name for it, Hydra itself stops with the reason."""
        with contextlib.suppress(OmegaConfBaseException):
            self.folder = Path(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folder of the sweep and, for ``continue=``, its command, which not every sweeper does."""
        self.folder, self._start = Path(config.hydra.sweep.dir), uuid.uuid4().hex
        self._command = {self.folder / SWEEP_FILE: OmegaConf.to_yaml(config)}
        write_new(self._command)  # that of an earlier sweep is replaced by the first job that may run
        if "submitit" in config.hydra.launcher._target_:
            print(f"what the jobs print is in {os.path.relpath(self.folder)}/.submitit", flush=True)
        if "optuna" in config.hydra.sweeper._target_ and "max" not in str(config.hydra.sweeper.direction).lower():
            print("warning: this looks for the worst mean DSC; use hparams_search=dsc_optuna", file=sys.stderr)

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        """Mark the run as a job of this sweep; except on SLURM, let the job end when the sweep ends."""
        SweepCallback.command = self._command
        folder = Path(config.hydra.runtime.output_dir)
        (folder / ERROR_FILE).unlink(missing_ok=True)
        if self._start:
            write_atomically(folder / MEMBER, self._start)
        if self._pid == os.getpid():
            return
        os.environ["TTY_COMPATIBLE"] = "0"  # plain lines: live ones of several jobs would overwrite each other
        if not config.hydra.launcher._target_.endswith("SlurmLauncher"):
            _end_with(self._pid)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare this sweep's runs; older ones in the same folder stay out."""
        assert self.folder is not None
        members = sorted(self.folder.rglob(str(MEMBER)))
        runs = [path.parent.parent for path in members if path.read_text() == self._start]
        self.jobs = len(runs)
        self.failed = {run.name: (run / ERROR_FILE).read_text() for run in runs if (run / ERROR_FILE).is_file()}
        if not any((run / ROUNDS_FILE).is_file() for run in runs):
            return  # none has trained: there is nothing to compare
        from rich.console import Console

        from fednnunet.reporting.finish import compare_runs

        try:
            compare_runs(self.folder, runs, Console())
            _track_comparison(config.logger, self.folder)
        except FednnUNetError as error:
            self.failed["comparison"] = str(error)
        if "optuna" in config.hydra.sweeper._target_:
            best = OmegaConf.load(self.folder / OPTIMISED)
            parameters = " ".join(f"{key}={value}" for key, value in best.best_params.items())
            print(f"best: {parameters} (mean DSC {best.best_value:.3f})")


def _track_comparison(loggers: DictConfig, folder: Path) -> None:
    """Hand the comparison in ``folder`` to the trackers of the sweep."""
    from fednnunet.tracking.base import Trackers

    entries: Any = OmegaConf.to_container(loggers, resolve=False)
    trackers = [
        instantiate(OmegaConf.create(entry | {"folder": str(folder)} if "folder" in entry else entry))
        for entry in entries.values()
    ]
    group = Trackers(trackers, notify=lambda text: print(text, file=sys.stderr))
    group.log_comparison(folder)
    group.on_run_end()


def _end_with(pid: int) -> None:
    """End this process, as Ctrl-C does, once process ``pid`` has ended, for whatever reason."""
    command = psutil.Process(pid)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait_for_command() -> None:
        while _is_alive(command):
            time.sleep(WATCH_SECONDS)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(END_SECONDS)  # then joblib's processes would wait for the next job

    end_with(wait_for_command, f"end with {pid}", interrupt)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
