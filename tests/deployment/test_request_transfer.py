"""Requests are pushed object by object; large ones go by the files that the SuperLink shares with the server app."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse

from fednnunet.deployment.server.flower_internals import ObjectPushError, iterate_object_tree
from fednnunet.deployment.server.object_files import FOLDER, ObjectFiles
from fednnunet.deployment.server.request_transfer import push_request
from fednnunet.exchange.flower_internals import act_as
from fednnunet.exchange.packing import ARRAYS, CHUNK_BYTES, pack
from fednnunet.exchange.records import to_array_record

pytestmark = pytest.mark.unit
RUN, NODE = 7, 5
WEIGHT = np.arange(CHUNK_BYTES // 4 + 100, dtype=np.float32)
"""Of a whole chunk, and one that is too small for a file."""


class SuperLink:
    """Lacks every object; takes what is pushed."""

    def __init__(self) -> None:
        self.pushed: dict[str, bytes] = {}
        self.head = PushAppMessagesRequest()

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:
        self.head = request
        ids = [part.object_id for part in iterate_object_tree(request.message_object_trees[0])]
        return PushAppMessagesResponse(message_ids=[ids[-1]], objects_to_push=ids, session_id="s")

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:
        assert (request.node.node_id, request.run_id, request.session_id) == (1, RUN, "s")
        self.pushed[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)


def push(link: SuperLink, state: Path) -> str:
    act_as(1, RUN)
    content = RecordDict({"config": ConfigRecord({"body": "{}"}), ARRAYS: to_array_record({"weight": WEIGHT})})
    return push_request(link, ObjectFiles(state), RUN, Message(pack(content), NODE, "train"))  # type: ignore[arg-type]


def test_large_parts_are_files_that_empty_pushes_announce_and_no_more_is_in_either(tmp_path: Path) -> None:
    link = SuperLink()
    id_ = push(link, tmp_path)
    files = {path.name: path for path in (tmp_path / FOLDER).iterdir()}
    assert {object_id for object_id, content in link.pushed.items() if not content} == set(files)
    assert all(ObjectFiles(tmp_path).is_sound(name) for name in files)
    (large,) = files.values()
    small = [content for content in link.pushed.values() if content.startswith(b"ArrayChunk ")]
    chunks = [large.read_bytes(), *small]
    assert b"".join(chunk.split(b"\0", 1)[1] for chunk in chunks).endswith(WEIGHT.tobytes()[-400:])
    assert sum(len(chunk.split(b"\0", 1)[1]) for chunk in chunks) >= WEIGHT.nbytes
    assert list(link.pushed)[-1] == id_, "the message itself comes last"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.ENOENT])
def test_a_file_that_may_be_written_later_is_pushed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ObjectPushError):
            push(SuperLink(), tmp_path)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="Read-only"):
            push(SuperLink(), tmp_path)


def test_a_message_that_is_not_accepted_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = SuperLink()
    monkeypatch.setattr(link, "PushMessages", lambda _: PushAppMessagesResponse(message_ids=[""], session_id="s"))
    assert push(link, tmp_path) == ""
    assert link.pushed == {}
    assert not (tmp_path / FOLDER).exists()
