"""Folders of sockets: never left behind for long, and nothing else is ever removed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fednnunet.node.launcher import SOCKETS_FILE, socket_folder, worker_address


def test_a_folder_of_sockets_is_its_users_alone_and_removed_at_the_end(tmp_path: Path) -> None:
    with socket_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert worker_address(folder, "worker").key_file.is_file()
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    killed = socket_folder(tmp_path)
    left = killed.__enter__()  # and never left, as after kill -9
    key = worker_address(left, "worker").key_file
    with socket_folder(tmp_path) as folder:
        assert not key.exists()
        assert not left.exists()
        assert folder.is_dir()


@pytest.mark.parametrize("name", ["precious", "fednnunet-link"])
def test_nothing_but_a_folder_of_sockets_is_removed(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    if name != "precious":
        (tmp_path / name).symlink_to(precious)
    owner = tmp_path / "owner"
    owner.mkdir()
    (owner / SOCKETS_FILE).write_text(str(tmp_path / name))
    with socket_folder(owner):
        pass
    assert (precious / "file").is_file()
