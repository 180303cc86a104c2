"""Replies are fetched object by object; one that is cut off or unreadable takes nothing else down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse

from fednnunet.deployment.server import reply_transfer
from fednnunet.deployment.server.flower_internals import ConfirmMessageReceivedRequest, ObjectPullError
from fednnunet.deployment.server.object_files import ObjectFiles
from fednnunet.deployment.server.reply_transfer import pull_replies
from fednnunet.errors import ProtocolError
from fednnunet.exchange import assembly
from fednnunet.exchange.flower_internals import (
    act_as,
    get_all_nested_objects,
    get_object_tree,
    message_to_proto,
    remove_content_from_message,
    set_message_id,
)
from fednnunet.exchange.packing import ARRAYS, pack, unpack
from fednnunet.exchange.records import from_array_record, to_array_record

RUN, NODE, SENDER_IN_REPLY = 7, 5, 6
LAYERS = {"weight": np.arange(2_000_000, dtype=np.float32)}


class Server:
    """Holds the reply of a node, whose head says who sent it."""

    def __init__(self, state: Path) -> None:
        self.files = ObjectFiles(state)
        act_as(0, RUN)
        request = Message(RecordDict(), NODE, "train")
        set_message_id(request, request.object_id)
        act_as(SENDER_IN_REPLY, RUN)
        content = RecordDict({"config": ConfigRecord({"body": "{}"}), ARRAYS: to_array_record(LAYERS)})
        reply = Message(pack(content), reply_to=request)
        set_message_id(reply, reply.object_id)
        self.request_id, self.reply_id = request.metadata.message_id, reply.metadata.message_id
        self.tree = get_object_tree(reply)
        self.objects = {id_: part.deflate() for id_, part in get_all_nested_objects(reply).items()}
        self.head = message_to_proto(remove_content_from_message(reply))
        self.head.metadata.src_node_id = NODE
        self.confirmed: list[str] = []

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        asked = self.request_id in request.message_ids
        return PullAppMessagesResponse(
            messages_list=[self.head] if asked else [], message_object_trees=[self.tree] if asked else []
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        content = self.objects.get(request.object_id)
        if content is None:
            return PullObjectResponse(object_found=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()

    def pull(self) -> list[tuple[str, Message | ObjectPullError | ProtocolError]]:
        return list(pull_replies(self, self.files, RUN, [self.request_id]))  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.mark.unit
def test_a_reply_comes_whole_from_who_its_head_names(server: Server) -> None:
    ((id_, reply),) = server.pull()
    assert isinstance(reply, Message)
    assert (id_, reply.metadata.reply_to_message_id) == (server.request_id, server.request_id)
    assert (reply.metadata.src_node_id, reply.metadata.message_id) == (NODE, server.reply_id)
    arrays = from_array_record(unpack(reply.content, "the node").array_records[ARRAYS], "the node")
    assert np.array_equal(arrays["weight"], LAYERS["weight"])
    assert server.confirmed == [server.reply_id]


@pytest.mark.unit
def test_what_is_on_its_way_is_taken_soon_after_it_has_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    id_, content = max(server.objects.items(), key=lambda item: len(item[1]))
    del server.objects[id_]
    pull, asked, looks = server.PullObject, 0, []

    def on_its_way(request: PullObjectRequest) -> PullObjectResponse:
        nonlocal asked
        if request.object_id != id_:
            return pull(request)
        asked += 1
        return PullObjectResponse(object_found=True)

    def pass_time(seconds: float) -> None:
        looks.append(seconds)
        if sum(looks) > 60:
            server.files.write(id_, [content])

    monkeypatch.setattr(server, "PullObject", on_its_way)
    monkeypatch.setattr(reply_transfer.time, "sleep", pass_time)
    ((_, reply),) = server.pull()
    assert isinstance(reply, Message)
    assert 60 < sum(looks) < 60.1, "seconds on a slow line; it is in a file then"
    assert asked == 6 + 29, "after 0.04, 0.1, 0.2, 0.4, 0.8 and 1.6 s, then every 2 s"


@pytest.mark.unit
def test_nothing_is_pulled_that_was_not_asked_for(server: Server) -> None:
    assert list(pull_replies(server, server.files, RUN, ["another"])) == []  # type: ignore[arg-type]


@pytest.mark.unit
def test_a_reply_that_broke_off_is_not_confirmed(server: Server) -> None:
    del server.objects[next(iter(server.objects))]
    ((id_, problem),) = server.pull()
    assert id_ == server.request_id
    assert isinstance(problem, ObjectPullError)
    assert server.confirmed == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda objects: {id_: b"\xff" + content for id_, content in objects.items()}, "cannot be read"),
        (
            lambda objects: {
                id_: b"\0\xff".join(content.split(b"\0", 1)) if content.startswith(b"Message ") else content
                for id_, content in objects.items()
            },
            "cannot be read",
        ),
        (
            lambda objects: {
                id_: content.replace(b'"arraychunk_ids": [0', b'"arraychunk_ids": [' + b"0, " * 3000 + b"0")
                for id_, content in objects.items()
            },
            "more than a message may hold",
        ),
    ],
)
def test_a_reply_that_cannot_be_read_is_told_and_over(
    server: Server, damage: Callable[[dict[str, bytes]], dict[str, bytes]], problem: str
) -> None:
    server.objects = damage(server.objects)
    ((id_, error),) = server.pull()
    assert id_ == server.request_id
    assert isinstance(error, ProtocolError)
    assert problem in str(error)
    assert server.confirmed == [server.reply_id]


@pytest.mark.unit
def test_no_more_is_pulled_than_a_reply_may_hold(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MAX_MESSAGE_BYTES", 6_000_000)
    ((_, error),) = server.pull()
    assert isinstance(error, ProtocolError)
    assert server.confirmed == [server.reply_id]
