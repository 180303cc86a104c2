"""Compose the configuration, check it, run it: ``python train.py --help``."""

from __future__ import annotations

import os
import shlex
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach launch() below instead of Hydra's own exit

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fednnunet.config import read_config
from fednnunet.errors import FednnUNetError

COMMAND = shlex.join(["python", *sys.argv])
failures: list[str] = []


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job: Hydra calls it once, or once for every job of a sweep."""
    try:
        config = read_config(cfg)
        from fednnunet.run import run

        print(run(config, COMMAND))
    except FednnUNetError as error:
        # A sweep goes on with its other jobs.
        failures.append(str(error))
        print(f"error: {error}", file=sys.stderr)


def launch() -> int:
    """Exit code: 0, 2 when the user has something to mend, 130 after Ctrl-C."""
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        text = " ".join(str(error).split("Config search path")[0].split())
        print(f"error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(launch())
