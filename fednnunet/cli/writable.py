"""Whether results can be written, asked before what takes minutes to compute."""

from __future__ import annotations

import os
from pathlib import Path

from fednnunet.errors import ConfigError
from fednnunet.files import nearest_existing


def check_folder(folder: Path) -> None:
    """Check that files can be written into a folder, which need not exist yet; nothing is made.

    Raises:
        ConfigError: it, or the nearest folder above it that exists, is a file or may not be written.
    """
    nearest = nearest_existing(folder.absolute())
    found = "it" if nearest == folder.absolute() else nearest
    if not nearest.is_dir():
        raise ConfigError(f"{folder} cannot be written: {found} is a file; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written: {found} may not be written by you")


def check_file(file: Path) -> None:
    """Check that a file can be written; nothing is made.

    Raises:
        ConfigError: it is a folder, or its folder cannot be written.
    """
    if file.is_dir():
        raise ConfigError(f"{file} cannot be written: it is a folder; name a file")
    check_folder(file.absolute().parent)
