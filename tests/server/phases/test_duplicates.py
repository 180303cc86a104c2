"""Images that several nodes hold, found by digests: the real relay and messages, over the local grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fednnunet.errors import ProtocolError
from fednnunet.exchange.channel import Request
from fednnunet.exchange.messages import FingerprintReply, FingerprintRequest, parse_body
from tests.server.phases import test_register
from tests.server.phases.test_register import Describe, names
from tests.support.recording_observer import RecordingObserver

asked, describe, observer = test_register.asked, test_register.describe, test_register.observer  # fixtures


class Holding:
    """Introduces itself, with these digests; keeps what it was asked."""

    def __init__(self, name: str, *digests: int, **fields: Any) -> None:
        self.name = name
        self.fields = {"image_digests": [f"{digest:064x}" for digest in digests], **fields}
        self.salts: list[str | None] = []

    def __call__(self, request: Request) -> None:
        self.salts.append(FingerprintRequest.model_validate_json(request.body).salt)
        body = test_register.introduction(self.name).model_dump() | self.fields
        request.reply(json.dumps(body))


def test_images_of_two_nodes_are_counted_and_no_case_is_named(
    describe: Describe, observer: RecordingObserver, tmp_path: Path
) -> None:
    nodes = [
        Holding("Oslo", 1, 2, 3),
        Holding("Porto", 2, 3, 4),
        Holding("Lund", 3, 5),
        Holding("Riga", 5, external=True, num_training=0),
    ]
    describe([0] * 4, {node.name: node for node in nodes}, find_duplicates=True)
    salts = {salt for node in nodes for salt in node.salts}
    assert len(salts) == 1, "one salt, or nothing could be compared"
    assert len(str(salts.pop())) == 64
    told = [message.partition(";")[0] for message in observer.messages]
    assert told == [
        "nodes Lund and Oslo both hold 1 image",
        "nodes Lund and Porto both hold 1 image",
        "nodes Lund and Riga both hold 1 image",
        "nodes Oslo and Porto both hold 2 images",
    ]
    assert json.loads((tmp_path / "duplicates.json").read_text()) == {
        f"{2:064x}": ["Oslo", "Porto"],
        f"{3:064x}": ["Lund", "Oslo", "Porto"],
        f"{5:064x}": ["Lund", "Riga"],
    }


def test_nothing_is_asked_for_unless_it_is_configured(
    describe: Describe, observer: RecordingObserver, tmp_path: Path
) -> None:
    nodes = [Holding("Oslo", 1), Holding("Porto", 1)]
    describe([0, 0], {node.name: node for node in nodes})
    assert [node.salts for node in nodes] == [[None], [None]]
    assert observer.messages == []
    assert not (tmp_path / "duplicates.json").exists()


def test_who_tells_nothing_is_named_and_stays(describe: Describe, observer: RecordingObserver) -> None:
    nodes = [Holding("Oslo", 1), Holding("Porto", image_digests=None), Holding("Lund", 1)]
    federation = describe([0] * 3, {node.name: node for node in nodes}, find_duplicates=True)
    assert names(federation) == ["Lund", "Oslo", "Porto"]
    assert observer.messages[0].startswith("images of Porto are not compared: ")
    assert observer.messages[1].startswith("nodes Lund and Oslo both hold 1 image;")


GOOD = [f"{number:064x}" for number in range(5)]


@pytest.mark.parametrize(
    ("digests", "problem"),
    [
        ([*GOOD, f"{5:064x}"], "image_digests: 6 of 5 cases"),
        ([GOOD[0], GOOD[0]], "image_digests: one is there twice"),
        ([GOOD[0][:-1]], r"image_digests\.0: "),
        ([GOOD[0] + "0"], r"image_digests\.0: "),
        (["../../etc/passwd"], r"image_digests\.0: "),
        (["G" * 64], r"image_digests\.0: "),
        ([7], r"image_digests\.0: "),
        ({"case_000": GOOD[0]}, "image_digests: "),
    ],
    ids=["more than cases", "twice", "short", "long", "path", "letters", "number", "names"],
)
def test_what_are_no_digests_is_refused_by_name(digests: Any, problem: str) -> None:
    text = json.dumps(test_register.introduction("Porto").model_dump() | {"image_digests": digests})
    with pytest.raises(ProtocolError, match=f"^node Porto sent a malformed FingerprintReply: .*{problem}"):
        parse_body(FingerprintReply, text, "node Porto")


def test_who_sends_none_is_left_out_where_others_are_enough(describe: Describe, observer: RecordingObserver) -> None:
    nodes = [Holding("Oslo", 1), Holding("Porto", *range(6)), Holding("Lund", 1)]
    federation = describe([0] * 3, {node.name: node for node in nodes}, find_duplicates=True, min_nodes=2)
    assert names(federation) == ["Lund", "Oslo"]
    assert "image_digests: 6 of 5 cases; the federation goes on without it" in observer.messages[0]
    assert observer.messages[-1].startswith("nodes Lund and Oslo both hold 1 image;")


@pytest.mark.parametrize("salt", ["", "0" * 63, "0" * 65, "Z" * 64, "../" * 21 + "a", 7])
def test_a_salt_is_32_bytes(salt: Any) -> None:
    with pytest.raises(ValueError, match="salt"):
        FingerprintRequest.model_validate({"salt": salt})
