"""Modules of an experiment's folder, and what the product makes of the commands that they build."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from hydra import compose, initialize_config_dir

from fednnunet.config.run import RunConfig, read_config

ROOT = Path(__file__).parents[2]


def load_module(folder: Path, name: str) -> ModuleType:
    """A module of the experiment, which finds its neighbours beside it."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def without_traces(*folders: Path) -> Iterator[None]:
    """For a fixture: no module of a common name, such as ``analysis``, is left to other tests."""
    yield
    for name, module in list(sys.modules.items()):
        if any(str(folder) in str(getattr(module, "__file__", "")) for folder in folders):
            del sys.modules[name]


def read_command(command: Sequence[str], run: Path) -> RunConfig:
    """The configuration of a command of ``train.py``, whose run's folder is ``run``."""
    overrides = [key for key in command if "=" in key and not key.startswith("hydra.")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return read_config(compose("config", overrides=[f"paths.run={run}", *overrides]))
