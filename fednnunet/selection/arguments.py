"""What a user names on the command line: folders of runs, or a node's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fednnunet.errors import ConfigError, DataError
from fednnunet.models.model_folder import RESULTS
from fednnunet.run_files import RUN_FILE
from fednnunet.selection.node_disk import read_disk_sources
from fednnunet.selection.run_folders import read_run_sources
from fednnunet.selection.sources import Sources


def split_name(argument: str) -> tuple[str | None, Path]:
    """``NAME=FOLDER`` or ``FOLDER``; a folder that exists may have an equals sign in its name.

    >>> split_name("ffe=/data/runs/a")
    ('ffe', PosixPath('/data/runs/a'))
    """
    if Path(argument).exists() or "=" not in argument:
        return None, Path(argument)
    name, _, folder = argument.partition("=")
    return name.strip(), Path(folder)


def is_node_folder(folder: Path) -> bool:
    """Whether it is what a node keeps of a run, not a run's folder."""
    return (folder / RESULTS).is_dir() and not (folder / RUN_FILE).is_file() and not (folder / ".hydra").is_dir()


def check_name(name: str | None, folder: Path) -> str:
    """The name of a candidate.

    Raises:
        ConfigError: there is none, or one that would be taken for something else.
    """
    if not name:
        raise ConfigError(
            f"{folder} is a node's folder, which does not say by which strategy it was trained: NAME={folder}, with "
            "local or the strategy's name"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+( [A-Za-z0-9_.=-]+)*", name):
        raise ConfigError(f"{name!r} is no name of a candidate: letters, digits and _ . - alone")
    return name


def read_sources(arguments: Sequence[str]) -> Sources:
    """Candidates of folders that a user names: all of runs, or all of a node's own.

    Args:
        arguments: ``FOLDER``, and of a node's folders ``NAME=FOLDER``.

    Raises:
        ConfigError: folders of both kinds, or a node's folder without a name.
        DataError: a folder is missing, or its files cannot be read or compared.
    """
    named = [split_name(argument) for argument in arguments]
    for _, folder in named:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; name a run's, a sweep's, or with NAME=FOLDER a node's")
    kinds = {is_node_folder(folder) for _, folder in named}
    if len(kinds) > 1:
        raise ConfigError("folders of runs and of nodes cannot be mixed; name all of one kind")
    if kinds == {True}:
        return read_disk_sources([(check_name(name, folder), folder) for name, folder in named])
    for name, folder in named:
        if name is not None:
            raise ConfigError(f"{folder} is a run's folder, which has a name already: leave out {name}=")
    return read_run_sources([folder for _, folder in named])
