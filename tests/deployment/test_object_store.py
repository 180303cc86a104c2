"""Contents of large objects are files beside the database: whole, of those that are known, and gone with them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from fednnunet.deployment.server.database import open_database
from fednnunet.deployment.server.object_files import FOLDER, LEAST_BYTES, ObjectFiles
from fednnunet.deployment.server.object_store import FileObjectStore
from fednnunet.deployment.server.operator_client import DATABASE
from fednnunet.deployment.server.staging import Staged, staging
from fednnunet.errors import ConfigError

pytestmark = pytest.mark.unit
RUN = 7


def an_object(children: str, body: bytes) -> tuple[str, bytes]:
    """Id and content of an object in Flower's format: kind, children, length, and after a zero byte its body."""
    content = f"ArrayChunk {children} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


LARGE, LARGE_CONTENT = an_object("", b"l" * LEAST_BYTES)
OTHER, OTHER_CONTENT = an_object("", b"o" * LEAST_BYTES)
SMALL, SMALL_CONTENT = an_object("", b"small")


def open_store(state: Path) -> FileObjectStore:
    store = open_database(state, auth=True).state.linkstate_factory.state().object_store
    assert isinstance(store, FileObjectStore)
    return store


@pytest.fixture(scope="module")
def new_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of a server that has just been started, whose tables take half a second to make."""
    state = tmp_path_factory.mktemp("state")
    open_store(state)
    return state


@pytest.fixture
def store(tmp_path: Path, new_state: Path) -> FileObjectStore:
    shutil.copytree(new_state, tmp_path, dirs_exist_ok=True)
    return open_store(tmp_path)


def files(state: Path) -> set[str]:
    return {path.name for path in (state / FOLDER).glob("*")}


def message(name: str, *children: str) -> tuple[str, bytes, ObjectTree]:
    id_, content = an_object(",".join(children), name.encode())
    return id_, content, ObjectTree(object_id=id_, children=[ObjectTree(object_id=child) for child in children])


def test_large_contents_are_files_of_their_user_and_small_ones_are_not(store: FileObjectStore, tmp_path: Path) -> None:
    id_, content, tree = message("one", LARGE, SMALL)
    assert set(store.preregister(RUN, tree)) == {id_, LARGE, SMALL}
    assert store.get(LARGE) == b"", "it has not come yet"
    for object_id, stored in ((id_, content), (LARGE, LARGE_CONTENT), (SMALL, SMALL_CONTENT)):
        store.put(object_id, stored)
        assert store.get(object_id) == stored
    assert files(tmp_path) == {LARGE}
    assert (tmp_path / FOLDER / LARGE).read_bytes() == LARGE_CONTENT
    assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / FOLDER / LARGE).stat().st_mode) == 0o600
    assert LARGE_CONTENT not in (tmp_path / DATABASE).read_bytes()


@pytest.mark.parametrize(
    ("object_id", "content"),
    [
        (LARGE, OTHER_CONTENT),
        (LARGE, b""),  # stands for a file, which there is not
        (hashlib.sha256(b"x" * LEAST_BYTES).hexdigest(), b"x" * LEAST_BYTES),  # no object
    ],
)
def test_what_is_not_what_its_id_says_is_refused(
    store: FileObjectStore, tmp_path: Path, object_id: str, content: bytes
) -> None:
    store.preregister(RUN, ObjectTree(object_id=object_id))
    with pytest.raises(Exception, match=r"another content|unexpected structure"):
        store.put(object_id, content)
    assert store.get(object_id) == b""
    assert files(tmp_path) == set()


def test_what_was_not_announced_is_refused_and_leaves_no_file(store: FileObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NoObjectInStoreError):
        store.put(LARGE, LARGE_CONTENT)
    assert store.get(LARGE) is None
    assert files(tmp_path) == set()


def test_what_is_no_longer_waited_for_when_it_has_come_leaves_no_file(store: FileObjectStore, tmp_path: Path) -> None:
    id_, _, tree = message("one", LARGE)
    store.preregister(RUN, tree)

    def handler(request: Any, state: State) -> PushObjectResponse:
        state.object_store.delete(id_)  # by another thread, between the check and the transaction
        with pytest.raises(NoObjectInStoreError):
            state.object_store.put(request.object_id, request.object_content)
        return PushObjectResponse(stored=False)

    staging(handler)(PushObjectRequest(run_id=RUN, object_id=LARGE, object_content=LARGE_CONTENT), State(store))
    assert files(tmp_path) == set()


def test_a_push_that_fails_takes_nothing_from_another_of_the_same_content(
    store: FileObjectStore, tmp_path: Path
) -> None:
    store.preregister(RUN, message("one", LARGE)[2])
    ours, others = store.stage(LARGE, LARGE_CONTENT), store.stage(LARGE, LARGE_CONTENT)
    assert isinstance(others, Staged)
    store.unstage(others)
    store.put(LARGE, ours)
    assert store.get(LARGE) == LARGE_CONTENT
    assert files(tmp_path) == {LARGE}


def test_a_file_of_the_operators_is_taken_if_it_is_what_its_name_says(store: FileObjectStore, tmp_path: Path) -> None:
    _, _, tree = message("one", LARGE, OTHER)
    store.preregister(RUN, tree)
    ours = ObjectFiles(tmp_path)
    ours.write(LARGE, [LARGE_CONTENT[:100], memoryview(LARGE_CONTENT)[100:]])
    store.put(LARGE, store.stage(LARGE, b""))
    assert store.get(LARGE) == LARGE_CONTENT
    ours.write(OTHER, [LARGE_CONTENT])
    with pytest.raises(ValueError, match="another content"):
        store.put(OTHER, store.stage(OTHER, b""))
    assert files(tmp_path) == {LARGE}


class State:
    """Flower's state, as a handler sees it."""

    def __init__(self, store: FileObjectStore) -> None:
        self.object_store = store


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_pushed_object_is_in_a_file_before_the_transaction_that_gives_it_its_name(
    store: FileObjectStore, tmp_path: Path, is_stored: bool
) -> None:
    _, _, tree = message("one", LARGE)
    store.preregister(RUN, tree)

    def handler(request: Any, state: State) -> PushObjectResponse:
        (file,) = (tmp_path / FOLDER).iterdir()
        assert (file.suffix, file.read_bytes()) == (".partial", LARGE_CONTENT)
        assert ObjectFiles(tmp_path).read(LARGE) is None, "the server app could say that it has it before it is stored"
        assert (request.run_id, request.session_id, len(request.object_content)) == (RUN, "s", len(LARGE_CONTENT))
        if is_stored:
            state.object_store.put(request.object_id, request.object_content)
            assert files(tmp_path) == {LARGE}
        return PushObjectResponse(stored=is_stored)

    push = PushObjectRequest(run_id=RUN, session_id="s", object_id=LARGE, object_content=LARGE_CONTENT)
    assert staging(handler)(push, State(store)).stored is is_stored
    assert files(tmp_path) == ({LARGE} if is_stored else set())
    assert store.get(LARGE) == (LARGE_CONTENT if is_stored else b"")


@pytest.mark.parametrize("content", [LARGE_CONTENT, OTHER_CONTENT])
def test_nothing_is_written_of_what_nobody_waits_for_or_is_not_what_its_id_says(
    store: FileObjectStore, tmp_path: Path, content: bytes
) -> None:
    if content == OTHER_CONTENT:
        store.preregister(RUN, message("one", LARGE)[2])

    def handler(request: Any, _: State) -> PushObjectResponse:
        assert request.object_content == content
        assert files(tmp_path) == set()
        return PushObjectResponse(stored=False)

    staging(handler)(PushObjectRequest(object_id=LARGE, object_content=content), State(store))
    assert files(tmp_path) == set()


def test_a_full_disk_is_named_and_leaves_no_half_of_a_file(
    store: FileObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.preregister(RUN, message("one", LARGE)[2])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", full)
        with pytest.raises(HTTPException) as raised:
            store.stage(LARGE, LARGE_CONTENT)
    assert (raised.value.status_code, files(tmp_path)) == (507, set())
    store.put(LARGE, store.stage(LARGE, LARGE_CONTENT))
    assert store.get(LARGE) == LARGE_CONTENT, "it can be sent again"


def test_a_file_goes_with_the_last_message_that_has_it(store: FileObjectStore, tmp_path: Path) -> None:
    first, _, first_tree = message("first", LARGE, OTHER)
    second, _, second_tree = message("second", LARGE)
    for tree in (first_tree, second_tree):
        store.preregister(RUN, tree)
    store.put(LARGE, LARGE_CONTENT)
    store.put(OTHER, OTHER_CONTENT)
    store.delete(first)
    assert files(tmp_path) == {LARGE}
    store.delete_objects_in_run(RUN)
    assert files(tmp_path) == set()
    assert (second in store, len(store)) == (False, 0)


def test_what_a_killed_server_leaves_is_compared_at_the_start(store: FileObjectStore, tmp_path: Path) -> None:
    _, _, tree = message("one", LARGE, OTHER, SMALL)
    store.preregister(RUN, tree)
    for object_id, content in ((LARGE, LARGE_CONTENT), (OTHER, OTHER_CONTENT), (SMALL, SMALL_CONTENT)):
        store.put(object_id, content)
    (tmp_path / FOLDER / OTHER).write_bytes(OTHER_CONTENT[:-1])  # as after a power failure
    unknown, content = an_object("", b"u" * LEAST_BYTES)
    ObjectFiles(tmp_path).write(unknown, [content])
    (tmp_path / FOLDER / f"{LARGE}.1.0123abcd.partial").write_bytes(b"half")
    (tmp_path / FOLDER / "lost+found").mkdir()  # where the folder is a disk of its own
    again = open_store(tmp_path)
    assert files(tmp_path) == {LARGE, "lost+found"}
    assert (again.get(LARGE), again.get(SMALL), again.get(OTHER)) == (LARGE_CONTENT, SMALL_CONTENT, b"")
    assert OTHER in again.preregister(RUN, tree), "the next message asks for it"
    again.put(OTHER, OTHER_CONTENT)
    assert again.get(OTHER) == OTHER_CONTENT


def test_what_an_earlier_version_has_stored_in_the_database_is_given_and_deleted_as_well(
    store: FileObjectStore, tmp_path: Path
) -> None:
    id_, _, tree = message("one", LARGE)
    store.preregister(RUN, tree)
    SqlObjectStore.put(store, LARGE, LARGE_CONTENT)
    again = open_store(tmp_path)
    assert again.get(LARGE) == LARGE_CONTENT
    again.delete(id_)
    assert (again.get(LARGE), len(again), files(tmp_path)) == (None, 0, set())


def test_a_file_that_is_lost_is_asked_for_again(store: FileObjectStore, tmp_path: Path) -> None:
    _, _, tree = message("one", LARGE)
    store.preregister(RUN, tree)
    store.put(LARGE, LARGE_CONTENT)
    (tmp_path / FOLDER / LARGE).unlink()
    assert store.get(LARGE) is None
    assert LARGE in store.preregister(RUN, tree)


def test_files_that_the_server_could_not_read_are_not_written(
    store: FileObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = (tmp_path / FOLDER).stat().st_uid
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda _: SimpleNamespace(st_uid=owner + 1))
        with pytest.raises(ConfigError, match="belongs to the server's user"):
            ObjectFiles(tmp_path).write(LARGE, [LARGE_CONTENT])
    assert files(tmp_path) == set()


@pytest.mark.parametrize("name", ["../state.db", "0x" + "a" * 62, LARGE.upper(), LARGE + "\n"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / DATABASE).write_bytes(b"secret")
    found = ObjectFiles(tmp_path)
    assert (found.read(name), found.exists(name), found.is_sound(name)) == (None, False, False)
    found.remove(name)
    with pytest.raises(ValueError, match="SHA-256"):
        found.write(name, [b""])
    assert (tmp_path / DATABASE).read_bytes() == b"secret"
