"""Which replies are refused, by node and layer, and in which order the others are handed on."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.exchange.update_limit import UpdateLimit
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.layer_groups import LayerGroups
from fednnunet.server.strategy.layer_matching import match_layers
from fednnunet.server.strategy.reply_validation import ReplyValidator
from tests.support.train_replies import train_reply

pytestmark = pytest.mark.usefixtures("empty_grid")
NAMES = {1: "A", 2: "B"}
SHAPES = {node: {"w": (2,), "b": (1,)} for node in NAMES}


@pytest.fixture
def validator() -> ReplyValidator:
    validator = ReplyValidator(LayerGroups(SHAPES, match_layers(SHAPES)), NAMES, "float32", UpdateLimit(10))
    validator.begin_round(list(NAMES), {})
    return validator


def state(w: object = (1.0, 2.0), b: object = (3.0,), **more: object) -> dict[str, np.ndarray]:
    return {name: np.array(value, dtype=np.float32) for name, value in {"w": w, "b": b, **more}.items()}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (state(w=(1.0, np.nan)), "sent layer w with values that are not finite"),
        (state(w=(1.0, np.inf)), "sent layer w with values that are not finite"),
        (state(w=(1.0, 2.0, 3.0)), "sent layer w with shape (3,) instead of (2,)"),
        (state(extra=(1.0,)), "sent layer extra, which it was not asked for"),
        ({"w": np.zeros(2, dtype=np.float32)}, "did not send layer b"),
        ({name: array.astype(np.float64) for name, array in state().items()}, "sent layer w as float64 instead of"),
    ],
)
def test_bad_layers_are_refused_by_node_and_layer(
    validator: ReplyValidator, bad: dict[str, np.ndarray], problem: str
) -> None:
    (update,) = validator.updates(1, [train_reply(1, state()), train_reply(2, bad)])
    assert update.node == 1
    assert all(np.array_equal(array, state()[name]) for name, array in update.arrays.items())
    assert validator.failures.keys() == {2}
    assert validator.failures[2].startswith(f"node B {problem}")
    assert validator.accepted.keys() == {1}


def test_a_node_counts_once_and_the_first_reason_stands(validator: ReplyValidator) -> None:
    replies = [
        *(train_reply(1, state()), train_reply(1, state())),
        *(train_reply(2, state(w=(1.0,))), train_reply(2, state())),
        train_reply(3, state()),
    ]
    assert [update.node for update in validator.updates(1, replies)] == [1]
    assert validator.failures[1] == "node A has answered this round already"
    assert validator.failures[2].startswith("node B sent layer w with shape")
    assert validator.failures[3] == "node 3 is not part of this round"


def test_updates_are_by_group_with_cases_and_metrics(validator: ReplyValidator) -> None:
    (update,) = validator.updates(1, [train_reply(2, state(), num_cases=7, train_loss=0.5, dice=float("nan"))])
    assert (update.node, update.name, update.num_cases, update.norm) == (2, "B", 7, None)
    assert dict(update.metrics) == {"num-examples": 7, "train_loss": 0.5}
    assert list(update.arrays) == ["w", "b"]


def test_sums_do_not_depend_on_the_order_of_arrival(empty_grid: LocalGrid) -> None:
    rng = np.random.default_rng(0)
    # Magnitudes so different that a sum in another order has other last bits.
    states = {node: {"w": rng.standard_normal(5000) * 10.0**node} for node in range(4)}
    start = to_array_record({"w": np.zeros(5000)})
    results = set()
    for order in itertools.permutations(states):
        strategy = AsymFedAvg(weighting="num_cases")
        strategy.prepare({node: {"w": (5000,)} for node in states}, {node: f"node{node}" for node in states})
        strategy.configure_train(1, start, ConfigRecord(), empty_grid)
        averaged, _ = strategy.aggregate_train(1, [train_reply(node, states[node], 1 + node) for node in order])
        assert averaged is not None, strategy.failures
        results.add(from_array_record(averaged, "a test")["w"].tobytes())
    assert len(results) == 1


def test_a_refused_reply_does_not_hold_up_the_others(validator: ReplyValidator) -> None:
    bad, good = train_reply(1, state(w=(1.0,))), train_reply(2, state())
    replies = iter([bad, good])
    updates = validator.updates(1, replies)
    assert next(updates).node == 2, "before the replies have ended"
    assert next(replies, None) is None
    assert list(updates) == []


def test_one_reply_is_in_memory_at_a_time_where_they_come_in_their_turn() -> None:
    names = {node: str(node) for node in range(1, 5)}
    strategy = AsymFedAvg()
    strategy.prepare(dict.fromkeys(names, SHAPES[1]), names)
    strategy.configure_train(1, to_array_record(state()), ConfigRecord({"fold": 0}), None)  # type: ignore[arg-type]
    sent: list[weakref.ref[Message]] = []

    def reply(node: int) -> Message:
        message = train_reply(node, state())
        sent.append(weakref.ref(message))
        return message

    def replies() -> Iterator[Message]:
        for node in names:
            yield reply(node)
            assert sent[-1]() is None, f"the reply of node {node} is kept while the next one is received"

    aggregated, _ = strategy.aggregate_train(1, replies())
    assert aggregated is not None
    assert not strategy.failures
