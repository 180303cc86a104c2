"""Compose the configuration, check it, run it: ``python train.py --help``."""

from __future__ import annotations

import os
import re
import shlex
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach launch() below instead of Hydra's own exit

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fednnunet.config import read_config
from fednnunet.errors import FednnUNetError
from fednnunet.resume import with_continue

COMMAND = shlex.join(["python", *sys.argv])
failures: list[str] = []


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job: Hydra calls it once, or once for every job of a sweep."""
    try:
        config = read_config(cfg)
        from fednnunet.run import run

        table = run(config, COMMAND)
        if HydraConfig.get().mode != RunMode.MULTIRUN:  # a sweep ends with one table of all its runs
            print(table)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the last checkpoints are kept. To go on: {go_on()}", file=sys.stderr)
        raise
    except FednnUNetError as error:
        # A sweep goes on with its other jobs.
        failures.append(str(error))
        print(f"error: {error}", file=sys.stderr)


def go_on() -> str:
    """The command that goes on with the run, or sweep, that was interrupted."""
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    folder = hydra_config.sweep.dir if sweep else hydra_config.runtime.output_dir
    return shlex.join(["python", sys.argv[0], f"continue={os.path.relpath(folder)}"])


def in_one_line(error: Exception) -> str:
    """Hydra's error, without its advice to append a key that nothing reads."""
    text = " ".join(str(error).split("Config search path")[0].split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    return f"unknown key {unknown[1]}; --cfg job shows all keys, --help all groups" if unknown else text


def launch() -> int:
    """Exit code: 0, 2 when the user has something to mend, 130 after Ctrl-C."""
    try:
        sys.argv[1:] = with_continue(sys.argv[1:])
        main()
    except FednnUNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(launch())
