"""A reply that broke off is given up when its node asks for work again, and no other."""

from __future__ import annotations

import pytest

from fednnunet.deployment.server.flower_internals import PushMessagesResponse
from fednnunet.deployment.server.uploads import Uploads

pytestmark = pytest.mark.unit


def answer(session: str) -> bytes:
    return PushMessagesResponse(session_id=session).SerializeToString()


def test_the_last_reply_of_a_node_is_given_up_when_it_asks_for_work() -> None:
    given_up: list[str] = []
    uploads = Uploads(given_up.append)
    uploads.begin("Oslo", answer("first"))
    uploads.begin("Oslo", answer("second"))  # the answer to the first was lost
    uploads.begin("Porto", answer("other"))
    uploads.end("Oslo")
    uploads.end("Oslo")
    assert given_up == ["second"]


def test_a_reply_that_could_not_be_given_up_is_given_up_when_its_node_asks_again() -> None:
    given_up: list[str] = []

    def discard(session: str) -> None:
        given_up.append(session)
        if len(given_up) == 1:
            raise OSError("the disk is full")

    uploads = Uploads(discard)
    uploads.begin("Oslo", answer("first"))
    with pytest.raises(OSError, match="full"):
        uploads.end("Oslo")
    uploads.end("Oslo")
    uploads.end("Oslo")
    assert given_up == ["first", "first"]


def test_an_answer_that_is_no_answer_to_a_reply_begins_nothing() -> None:
    uploads = Uploads(lambda _: pytest.fail("there is nothing to give up"))
    uploads.begin("Oslo", b'{"detail": "Run status is not allowed"}')
    uploads.begin("Oslo", answer(""))
    uploads.end("Oslo")
