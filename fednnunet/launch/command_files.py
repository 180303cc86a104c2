"""Files of a run's or sweep's folder that keep its command: ``continue=`` reads them.

Hydra would write them before anything is checked (``hydra.output_subdir`` is null for that), and a command that is
refused would replace the one that the folder is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fednnunet.files import write_atomically
from fednnunet.run_files import HYDRA_CONFIG_FILE, OVERRIDES_FILE


def command_files(cfg: DictConfig) -> dict[Path, str]:
    """Text of the files of the present job, as Hydra would write them."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    return {
        folder / HYDRA_CONFIG_FILE: OmegaConf.to_yaml(cfg),
        folder / HYDRA_CONFIG_FILE.with_name("hydra.yaml"): OmegaConf.to_yaml(HydraConfig.instance().cfg),
        folder / OVERRIDES_FILE: OmegaConf.to_yaml(job.overrides.task),
    }


def write_new(files: Mapping[Path, str]) -> None:
    """Write the files of a sweep's job that are not there yet: its failure is one of this command."""
    for path, text in files.items():
        if not path.exists():
            write_atomically(path, text)
