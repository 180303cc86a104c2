"""When a message counts as lost by its node."""

from __future__ import annotations

from flwr.app import Message, RecordDict

from fednnunet.deployment.server.flower_internals import NodeInfo
from fednnunet.deployment.server.pending_messages import PendingMessage, PollCounts, is_lost
from fednnunet.exchange.flower_internals import act_as

NODE = 5


def sent_after(polls: int | None) -> PendingMessage:
    act_as(node_id=0, run_id=1)
    return PendingMessage(Message(RecordDict(), NODE, "train"), "flower's id", polls)


def test_a_message_is_lost_when_its_node_has_fetched_it_and_asked_twice_more() -> None:
    sent = sent_after(10)
    assert [is_lost(sent, {NODE: polls}) for polls in (10, 11, 12, 13)] == [False, False, False, True]


def test_a_restarted_superlink_counts_from_zero() -> None:
    sent = sent_after(10)
    assert not is_lost(sent, {NODE: 1})
    assert not is_lost(sent, {NODE: 3})
    assert is_lost(sent, {NODE: 4})


def test_a_message_without_a_count_is_not_lost() -> None:
    assert not is_lost(sent_after(None), {NODE: 100})
    assert not is_lost(sent_after(0), {NODE + 1: 100})


def test_nodes_are_read_again_only_when_a_new_one_has_joined() -> None:
    reads = []

    def read_nodes() -> list[NodeInfo]:
        reads.append(1)
        return [NodeInfo(node_id=NODE, public_key=b"a"), NodeInfo(node_id=6, public_key=b"b")]

    counts = PollCounts(read_nodes, lambda: {b"a": 3})
    assert counts.by_node([NODE]) == {NODE: 3, 6: 0}
    assert counts.by_node([NODE, 6]) == {NODE: 3, 6: 0}
    assert len(reads) == 1
    counts.by_node([NODE, 7])
    assert len(reads) == 2
