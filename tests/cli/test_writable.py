"""Folders and files for results are checked before anything is computed, and nothing is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fednnunet.cli.writable import check_file, check_folder
from fednnunet.errors import ConfigError


def test_what_can_be_written_passes_and_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (Path(), Path("a/b"), tmp_path / "a" / "b"):
        check_folder(name)
    (tmp_path / "old.json").touch()
    for name in (Path("old.json"), Path("new.json"), tmp_path / "a" / "new.json"):
        check_file(name)
    assert os.listdir(tmp_path) == ["old.json"]


def test_files_in_the_place_of_folders_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder, named in ((file, "it"), (file / "a" / "b", file)):
        with pytest.raises(ConfigError) as caught:
            check_folder(folder)
        assert str(caught.value) == f"{folder} cannot be written: {named} is a file; name a folder"
    with pytest.raises(ConfigError, match="is a file"):
        check_file(file / "a.json")
    with pytest.raises(ConfigError, match="it is a folder; name a file"):
        check_file(tmp_path)


def test_folders_of_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # permissions bind not every user
    with pytest.raises(ConfigError, match=f"{tmp_path} may not be written by you"):
        check_folder(tmp_path / "a")
