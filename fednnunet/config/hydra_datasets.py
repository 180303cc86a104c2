"""Datasets by the name of their configuration in ``conf/dataset``."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic import ValidationError

import fednnunet
from fednnunet.config.groups import DatasetConfig
from fednnunet.errors import ConfigError, first_problem

PACKAGE = Path(fednnunet.__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""Beside the package in a clone, in it where it was installed."""


def dataset_names() -> list[str]:
    """Names that ``train.py dataset=NAME`` takes."""
    return sorted(path.stem for path in (CONF / "dataset").glob("*.yaml") if not path.stem.startswith("_"))


def configured_dataset(name: str) -> DatasetConfig:
    """The group ``dataset`` as ``train.py dataset=NAME`` has it.

    Raises:
        ConfigError: there is no such configuration, or it has a wrong value.
    """
    names = dataset_names()
    if name not in names:
        raise ConfigError(f"there is no dataset {name} in {CONF / 'dataset'}; there are {', '.join(names) or 'none'}")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", [f"dataset={name}"])
        return DatasetConfig.model_validate(OmegaConf.to_container(composed.dataset, resolve=True))
    except HydraException as error:
        raise ConfigError(f"dataset {name}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"dataset {name}: {first_problem(error, 'dataset')}") from None
