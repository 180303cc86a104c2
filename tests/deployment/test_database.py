"""Errors of the server's database: a full disk is waited for, damage is told in one line, and ends the server."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.supercore.state.schema.linkstate_models import Node
from sqlalchemy import Engine, create_engine, event, text

from fednnunet.deployment.server.database import (
    LOCK_SECONDS,
    LOG_BYTES,
    PAGE_BYTES,
    is_disk_full,
    open_database,
    watch_errors,
)
from fednnunet.deployment.server.flower_superlink import NodeRegister
from fednnunet.deployment.server.object_files import FOLDER
from fednnunet.deployment.supervision import SupervisedProcess
from fednnunet.errors import ConfigError
from tests.support.deployed_federation import Federation


@pytest.mark.unit
@pytest.mark.parametrize(
    ("code", "space", "expected"),
    [
        (sqlite3.SQLITE_FULL, True, True),
        (sqlite3.SQLITE_IOERR_WRITE, False, True),  # a quota: SQLite knows no more than that it could not write
        (sqlite3.SQLITE_IOERR_WRITE, True, False),  # a broken disk
        (sqlite3.SQLITE_BUSY, False, False),
        (None, False, False),
    ],
)
def test_a_used_up_quota_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, code: int | None, space: bool, expected: bool
) -> None:
    monkeypatch.setattr("fednnunet.deployment.server.database.has_free_space", lambda state: space)
    error = sqlite3.OperationalError("disk I/O error")
    if code is not None:
        error.sqlite_errorcode = code
    assert is_disk_full(error, Path("state")) is expected


# damage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Content of a sound database that knows a node."""
    state = tmp_path_factory.mktemp("sound")
    NodeRegister(open_database(state, auth=True)).add("Oslo", b"key")
    with sqlite3.connect(state / "state.db") as database:
        database.execute("pragma wal_checkpoint(truncate)")
    return (state / "state.db").read_bytes()


@pytest.fixture
def ends() -> list[bool]:
    return []


@pytest.fixture
def watched(tmp_path: Path, ends: list[bool]) -> Iterator[None]:
    listener = watch_errors(tmp_path, lambda: ends.append(True))
    yield
    event.remove(Engine, "handle_error", listener)


@pytest.mark.unit
@pytest.mark.usefixtures("watched")
def test_a_database_that_cannot_be_opened_is_an_error_and_not_a_reason_to_restart(tmp_path: Path, sound: bytes) -> None:
    for name, content in {
        "garbage": b"garbage" * 1000,
        "cut short": sound[: len(sound) // 2],
        "emptied by the file system": sound[:100] + bytes(len(sound) - 100),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.db").write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name}/state.db cannot be used"):
            open_database(tmp_path / name, auth=True)
    (tmp_path / "folder" / "state.db").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"state\.db cannot be used"):
        open_database(tmp_path / "folder", auth=True)


@pytest.mark.unit
def test_a_folder_of_objects_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_bytes(b"a file")
    with pytest.raises(ConfigError, match=f"/{FOLDER} cannot be used: "):
        open_database(tmp_path, auth=True)


@pytest.mark.unit
@pytest.mark.usefixtures("watched")
def test_a_database_of_another_version_of_flower_is_an_error(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "state.db").write_bytes(sound)
    with sqlite3.connect(tmp_path / "state.db") as database:
        database.execute("update alembic_version set version_num = 'later'")
    with pytest.raises(ConfigError, match=r"state\.db cannot be used"):
        open_database(tmp_path, auth=True)


@pytest.mark.unit
@pytest.mark.usefixtures("watched")
def test_damage_that_is_found_later_ends_the_server_once(tmp_path: Path, sound: bytes, ends: list[bool]) -> None:
    damaged = bytearray(sound)
    (tmp_path / "state.db").write_bytes(sound)
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
        (page,) = database.execute("select rootpage from sqlite_master where name = ?", [Node.__tablename__]).fetchone()
    damaged[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = bytes(PAGE_BYTES)
    (tmp_path / "state.db").write_bytes(damaged)
    register = NodeRegister(open_database(tmp_path, auth=True))
    for _ in range(2):
        with pytest.raises(Exception, match="malformed"):
            register.nodes()
    assert ends == [True]


@pytest.mark.unit
def test_a_process_that_ends_for_good_is_not_restarted() -> None:
    starts = []

    def start() -> SimpleNamespace:
        starts.append(True)
        return SimpleNamespace(is_alive=lambda: False, exitcode=76)

    process = SupervisedProcess("SuperLink", start, final_exit_codes={76: ConfigError("damaged")})  # type: ignore[arg-type]
    process.poll(print)
    with pytest.raises(ConfigError, match="damaged"):
        process.poll(print)
    process.poll(print)
    assert starts == [True]


def test_a_damaged_database_ends_the_server_with_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    federation = Federation(tmp_path, tmp_path / "raw", nodes=("Oslo",))
    federation.state.mkdir()
    (federation.state / "state.db").write_bytes(b"garbage" * 1000)
    try:
        federation.start_server(wait=False)
        assert federation.processes.pop("server").wait(60) == 2
    finally:
        federation.end()
    lines = federation.output("server").splitlines()
    assert [line for line in lines if "state.db" in line] == [
        f"error: {federation.state}/state.db is damaged, cannot be opened, or is of another version of Flower, or "
        f"objects beside it cannot be used (see the end of {federation.state}/server.log); move the files state.db* "
        "and objects away and start the server again: runs go on from their own folders, nodes are registered from the "
        "keys"
    ]
    assert not any("Traceback" in line or "restarted" in line for line in lines)
    assert "file is not a database" in (federation.state / "server.log").read_text()


# speed -------------------------------------------------------------------------------------------------


def page_bytes(state: Path) -> int:
    with contextlib.closing(sqlite3.connect(state / "state.db")) as database:
        return int(database.execute("pragma page_size").fetchone()[0])


@pytest.mark.unit
def test_a_new_database_has_large_pages_and_an_older_one_its_own(tmp_path: Path) -> None:
    NodeRegister(open_database(tmp_path, auth=True)).add("Oslo", b"key")
    assert page_bytes(tmp_path) == PAGE_BYTES
    older = tmp_path / "older"
    older.mkdir()
    with contextlib.closing(sqlite3.connect(older / "state.db")) as database:
        database.execute("pragma journal_mode = wal")
    open_database(older, auth=True)
    assert page_bytes(older) == 4096


@pytest.mark.unit
def test_the_log_beside_the_database_stays_as_small_as_with_small_pages(tmp_path: Path) -> None:
    register = NodeRegister(open_database(tmp_path, auth=True))
    register.add("Oslo", b"key")
    node_id = register.node_id(b"key")
    assert node_id is not None
    for number in range(3 * LOG_BYTES // PAGE_BYTES):
        register.restore(node_id, f"Oslo {number}")
    assert (tmp_path / "state.db-wal").stat().st_size < LOG_BYTES + 64 * PAGE_BYTES


@pytest.mark.unit
def test_a_request_waits_for_the_writes_of_others(tmp_path: Path) -> None:
    open_database(tmp_path, auth=True)
    with create_engine(f"sqlite:///{tmp_path / 'state.db'}").connect() as connection:
        assert connection.execute(text("pragma busy_timeout")).scalar() == LOCK_SECONDS * 1000
