"""Datasets by the name of their configuration in ``conf/dataset``, and what else such a file sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

import fednnunet
from fednnunet.config.dataset import DatasetConfig
from fednnunet.errors import ConfigError, first_problem

PACKAGE = Path(fednnunet.__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""Beside the package in a checkout, in it where it was installed."""


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


def set_by_dataset(cfg: DictConfig, hydra: Any) -> str:
    """Which other groups and keys the chosen dataset set, for the user to see; empty where it set none.

    Args:
        cfg: composed configuration of the run.
        hydra: Hydra's own configuration of it.
    """
    dataset = hydra.runtime.choices.get("dataset")
    given = {override.lstrip("+~").partition("=")[0] for override in hydra.overrides.task}
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    values = {}
    for folder in reversed(folders):
        for key, value in _values_of(folder / "dataset", dataset):
            chosen = hydra.runtime.choices.get(key) or OmegaConf.select(cfg, key)
            if key not in given and chosen == value:
                values[key] = value
    return (
        f"{', '.join(f'{key}={value}' for key, value in values.items())} (set by dataset={dataset})" if values else ""
    )


def _values_of(folder: Path, dataset: str) -> Iterator[tuple[str, Any]]:
    """Groups and keys outside ``dataset`` that a dataset's file, and those that it extends, set."""
    path = folder / f"{dataset}.yaml"
    if not path.is_file() or not path.read_text(encoding="utf-8").startswith("# @package _global_"):
        return
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    for entry in content.pop("defaults", []):
        if isinstance(entry, str):
            yield from _values_of(folder, entry.partition("@")[0])
        else:
            for name, option in entry.items():
                yield name.removeprefix("override").strip().lstrip("/").partition("@")[0], option
    for name, value in content.items():
        if name == "dataset":
            continue
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value
