"""``fednnunet train`` and ``python train.py``: compose the configuration, check it, run it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach launch() below instead of Hydra's own exit

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fednnunet.config.hydra_datasets import CONF, set_by_dataset
from fednnunet.config.run import read_config
from fednnunet.errors import FednnUNetError
from fednnunet.files import private_files
from fednnunet.launch.command_files import command_files, write_new
from fednnunet.launch.library_errors import format_hydra_error, launcher_error
from fednnunet.launch.resume import expand_continue
from fednnunet.launch.sweep_callback import SweepCallback, folder_problem, record_failure, report_failures, resume_hint
from fednnunet.plain_output import write_plainer
from fednnunet.processes import EndedBySignal, ended_by_signals, shorten_temp_folder

command = ""
"""What the user typed, for the report; a sweep's jobs in other processes get it with the function below."""
user_errors: list[str] = []
"""What the user has to fix, where a single run is started."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One job: Hydra calls it once, or once for every job of a sweep, maybe in another process.

    Returns:
        Mean DSC over training centres, which ``hparams_search=dsc_optuna`` maximises; None where there is none.
    """
    job = HydraConfig.get()
    sweep = Path(job.sweep.dir).name if job.mode == RunMode.MULTIRUN else None
    try:
        files = command_files(cfg)
        if sweep is not None:
            files |= SweepCallback.command
            write_new(files)
        config = read_config(cfg)
        if (sweep is None or job.job.num == 0) and (values := set_by_dataset(cfg, job)):
            print(values, flush=True)
        from fednnunet.run import run

        result = run(config, command, sweep, files)
    except Exception as error:
        if sweep is not None:
            record_failure(Path(job.runtime.output_dir), error)
        elif isinstance(error, FednnUNetError):
            user_errors.append(str(error))  # raised here, Hydra would report it in its own words, too
        else:
            raise
        return None
    if sweep is None:  # a sweep ends with one table of all its runs
        print(result.text)
    return result.dsc


def options_of_groups() -> str:
    """Files to choose from, a line per group, for ``--help``; those that only others build on begin with ``_``."""
    lines = []
    for folder in sorted(path for path in CONF.rglob("*") if path.is_dir()):
        options = sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))
        group = folder.relative_to(CONF)
        if options and group.parts[0] != "hydra":
            lines.append(f"{group.as_posix()}: {', '.join(options)}")
    return "\n".join(lines)


OmegaConf.register_new_resolver("options_of_groups", options_of_groups, replace=True)


def launch(program: Sequence[str], arguments: Sequence[str]) -> int:
    """Run what ``arguments`` say.

    Args:
        program: words of the command before its arguments: ``python train.py`` or ``fednnunet train``.
        arguments: overrides and Hydra's flags; ``continue=FOLDER`` stands for those of an earlier run.

    Returns:
        Exit code: 0, 2 when the user has something to fix, 130 after Ctrl-C, 143 after SIGTERM.
    """
    write_plainer()
    with private_files(), ended_by_signals():
        return _launch(program, arguments)


def _launch(program: Sequence[str], arguments: Sequence[str]) -> int:
    global command
    user_errors.clear()
    SweepCallback.current = None
    try:
        if change := shorten_temp_folder():
            print(f"note: {change}", file=sys.stderr)
        sys.argv = [program[-1], *expand_continue(list(arguments))]
        command = shlex.join([*program, *sys.argv[1:]])
        main()
    except FednnUNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {format_hydra_error(error)}", file=sys.stderr)
        return 2
    except EndedBySignal as end:
        print(f"{end}; the last checkpoints are kept.{resume_hint(program)}", file=sys.stderr)
        return 128 + end.number
    except KeyboardInterrupt:
        print(f"\ninterrupted; the last checkpoints are kept.{resume_hint(program)}", file=sys.stderr)
        return 130
    except Exception as error:
        if problem := folder_problem(error):
            print(f"error: {problem}", file=sys.stderr)
            return 2
        if not (problem := launcher_error(error)):
            raise
        print(f"error: {problem}.{resume_hint(program)}", file=sys.stderr)
        return 2
    for error_text in user_errors:
        print(f"error: {error_text}", file=sys.stderr)
    return 2 if user_errors else report_failures()
