"""Messages are put together from their objects: unchanged, and never larger than what was sent may hold."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fednnunet.errors import ProtocolError
from fednnunet.exchange import assembly
from fednnunet.exchange.assembly import assemble, limited
from fednnunet.exchange.flower_internals import act_as, get_all_nested_objects, set_message_id
from fednnunet.exchange.packing import ARRAYS, pack, unpack
from fednnunet.exchange.records import from_array_record, to_array_record

LAYERS = {
    "weight": np.arange(3_000_000, dtype=np.float32),  # three chunks
    "zeros": np.zeros(4_000_000, dtype=np.float32),  # equal chunks, which are one object
    "bias": np.ones(3, dtype=np.float16),
}


def message_with(arrays: ArrayRecord) -> Message:
    act_as(node_id=0, run_id=7)
    message = Message(RecordDict({"config": ConfigRecord({"body": "{}"}), ARRAYS: arrays}), 5, "train")
    set_message_id(message, message.object_id)
    return message


def contents_of(message: Message) -> dict[str, bytes]:
    return {id_: part.deflate() for id_, part in get_all_nested_objects(message).items()}


@pytest.mark.unit
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_message_is_what_was_sent(is_packed: bool) -> None:
    sent = message_with(to_array_record(LAYERS))
    if is_packed:
        sent.content = pack(sent.content)
    id_ = sent.object_id
    contents = contents_of(sent)
    message = assemble(id_, contents, "the node")
    assert message.metadata.message_type == "train"
    content = unpack(message.content, "the node")
    assert content.config_records["config"] == {"body": "{}"}
    arrays = from_array_record(content.array_records[ARRAYS], "the node")
    assert arrays.keys() == LAYERS.keys()
    assert all(np.array_equal(array, LAYERS[name]) and array.flags.aligned for name, array in arrays.items())
    assert sum(map(len, contents.values())) < 10_000, "chunks are freed as they are copied"


@pytest.mark.unit
def test_a_message_without_arrays_and_an_empty_array_are_read() -> None:
    sent = message_with(ArrayRecord({"empty": Array("uint8", (0,), "numpy.ndarray", b"")}))
    message = assemble(sent.object_id, contents_of(sent), "the node")
    assert len(message.content.array_records[ARRAYS]["empty"].data) == 0


def with_array(contents: dict[str, bytes], change: Callable[[dict[str, object]], object]) -> None:
    """Describe the array otherwise; ids are not compared with contents here, but by the server that stores them."""
    (id_,) = (id_ for id_, content in contents.items() if content.startswith(b"Array "))
    head, body = contents[id_].split(b"\0", 1)
    fields = json.loads(body)
    change(fields)
    changed = json.dumps(fields).encode()
    contents[id_] = b" ".join([*head.split(b" ")[:-1], str(len(changed)).encode()]) + b"\0" + changed


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda a: a.update(arraychunk_ids=[0, 0, 1]), "more than a message may hold"),
        (lambda a: a.update(arraychunk_ids=[0, 9]), "cannot be read"),
        (lambda a: a.update(arraychunk_ids=["0"]), "cannot be read"),
        (lambda a: a.update(arraychunk_ids=None), "cannot be read"),
        (lambda a: a.update(arraychunk_ids=[0]), "does not consist of its chunks"),
        (lambda a: a.pop("arraychunk_ids"), "cannot be read"),
        (lambda a: a.update(shape=3), "cannot be read"),
        (lambda a: a.update(shape="x"), "cannot be read"),
        (lambda a: a.update(dtype=[1]), "cannot be read"),
    ],
)
def test_an_array_that_is_none_is_refused(
    change: Callable[[dict[str, object]], object], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "MAX_MESSAGE_BYTES", 10 * 2**20)
    sent = message_with(to_array_record({"weight": np.arange(2_000_000, dtype=np.float32)}))
    contents = contents_of(sent)
    with_array(contents, change)
    with pytest.raises(ProtocolError, match=f"the node sent .*{problem}"):
        assemble(sent.object_id, contents, "the node")


@pytest.mark.unit
@pytest.mark.parametrize("size", [0, 1])
def test_no_more_short_chunks_are_listed_than_fit_into_memory(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes hundreds of bytes to join, whatever is in it."""
    most = 5
    monkeypatch.setattr(assembly, "MAX_MESSAGE_BYTES", most * assembly.LEAST_CHUNK_BYTES)
    sent = message_with(to_array_record({"bias": LAYERS["bias"]}))
    contents = contents_of(sent)
    (chunk,) = (id_ for id_, content in contents.items() if content.startswith(b"ArrayChunk "))
    contents[chunk] = f"ArrayChunk  {size}\0".encode() + bytes(size)
    with_array(contents, lambda a: a.update(arraychunk_ids=[0] * (most + 1)))
    with pytest.raises(ProtocolError, match="the node sent more than a message may hold"):
        assemble(sent.object_id, contents, "the node")


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["Message", "ConfigRecord"])
def test_an_object_that_is_no_protobuf_is_refused(kind: str) -> None:
    sent = message_with(to_array_record({"bias": LAYERS["bias"]}))
    contents = contents_of(sent)
    (id_,) = (id_ for id_, content in contents.items() if content.startswith(f"{kind} ".encode()))
    contents[id_] = contents[id_].split(b"\0", 1)[0] + b"\0\xff\xff\xff"
    with pytest.raises(ProtocolError, match="the node sent a message that cannot be read"):
        assemble(sent.object_id, contents, "the node")


@pytest.mark.unit
def test_what_is_no_message_is_refused() -> None:
    sent = message_with(to_array_record({"bias": LAYERS["bias"]}))
    for change in (
        lambda contents: contents.pop(sent.object_id),
        lambda contents: contents.update({sent.object_id: b"\xff\0"}),
        lambda contents: contents.update({sent.object_id: b"Unknown  1\0x"}),
        lambda contents: contents.update(dict.fromkeys([id_ for id_ in contents if id_ != sent.object_id], b"x")),
    ):
        contents = contents_of(sent)
        change(contents)
        with pytest.raises(ProtocolError, match="the node sent a message that cannot be read"):
            assemble(sent.object_id, contents, "the node")
    with pytest.raises(ProtocolError, match="not a message"):
        assemble(sent.content.object_id, contents_of(sent), "the node")
    loop = {sent.object_id: f"RecordDict {sent.object_id} 2\0{{}}".encode()}
    with pytest.raises(ProtocolError, match="cannot be read"):
        assemble(sent.object_id, loop, "the node")


@pytest.mark.unit
def test_no_more_is_pulled_than_a_message_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MAX_MESSAGE_BYTES", 10)
    pull = limited(lambda _: b"12345", "the node")
    assert pull("a") + pull("b") == b"1234512345"
    with pytest.raises(ProtocolError, match="the node sent more than a message may hold"):
        pull("c")
