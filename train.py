"""Compose the configuration, check it, run it: ``python train.py --help``."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach launch() below instead of Hydra's own exit

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fednnunet.config.run import read_config
from fednnunet.errors import FednnUNetError
from fednnunet.launch.resume import expand_continue
from fednnunet.launch.sweep_callback import NO_PLUGIN, go_on, launcher_error, record_failure, report_failures

COMMAND = shlex.join(["python", *sys.argv])
mistakes: list[str] = []
"""What the user has to fix, where one run is asked for."""


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One job: Hydra calls it once, or once for every job of a sweep, maybe in another process.

    Returns:
        Mean DSC over training centres, which ``hparams_search=dsc_optuna`` maximises; None where there is none.
    """
    job = HydraConfig.get()
    sweep = Path(job.sweep.dir).name if job.mode == RunMode.MULTIRUN else None
    try:
        config = read_config(cfg)
        from fednnunet.run import run

        result = run(config, COMMAND, sweep)
    except Exception as error:
        if sweep is not None:
            record_failure(Path(job.runtime.output_dir), error)
        elif isinstance(error, FednnUNetError):
            mistakes.append(str(error))  # raised here, Hydra would say it in its own words, too
        else:
            raise
        return None
    if sweep is None:  # a sweep ends with one table of all its runs
        print(result.text)
    return result.dsc


def launch() -> int:
    """Exit code: 0, 2 when the user has something to fix, 130 after Ctrl-C."""
    try:
        sys.argv[1:] = expand_continue(sys.argv[1:])
        main()
    except FednnUNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; the last checkpoints are kept.{go_on()}", file=sys.stderr)
        return 130
    except Exception as error:
        if not (problem := launcher_error(error)):
            raise
        print(f"error: {problem}.{go_on()}", file=sys.stderr)
        return 2
    for mistake in mistakes:
        print(f"error: {mistake}", file=sys.stderr)
    return 2 if mistakes else report_failures()


def in_one_line(error: Exception) -> str:
    """Hydra's error, without its advice to append a key that nothing reads."""
    text = " ".join(str(error).split("Config search path")[0].split())
    if "hydra_plugins" in text or "'hydra/sweeper/optuna'" in text:
        return NO_PLUGIN
    unknown = re.search(r"Could not override '([^']+)'", text)
    return f"unknown key {unknown[1]}; --cfg job shows all keys, --help all groups" if unknown else text


if __name__ == "__main__":
    sys.exit(launch())
