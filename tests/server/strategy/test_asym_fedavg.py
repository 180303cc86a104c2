"""The strategies, over real Flower messages."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fednnunet.exchange.messages import TrainRequest
from fednnunet.exchange.records import arrays_in, config_in, from_array_record, to_array_record
from fednnunet.exchange.shared_memory import SharedMemory
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.no_exchange import NoExchange

S = TypeVar("S", bound=Strategy)
SHAPES = {
    1: {"encoder": [2, 3], "head": [2], "own": [4]},
    2: {"encoder": [2, 3], "head": [5]},
    3: {"encoder": [2, 3], "head": [2]},
}
NAMES = {1: "A", 2: "B", 3: "C"}
CASES = {1: 10, 2: 30, 3: 60}

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """A node whose layers all hold its node id, plus what it received."""
    node = context.node_id
    body = TrainRequest.model_validate_json(str(config_in(message.content)["body"]))
    received = from_array_record(arrays_in(message.content), "the server")
    fault = context.node_config.get("fault")
    if fault == "error":
        return Message(Error(101, "no disk"), reply_to=message)
    arrays = {}
    for layer in body.layers:
        arrays[layer] = np.full(SHAPES[node][layer], float(node), dtype=np.float32)
        arrays[layer] += received.get(layer, np.zeros(1)).astype(np.float32)
        arrays[layer] = arrays[layer].astype("float64" if fault == "dtype" else body.dtype)
    if fault == "nan":
        arrays["encoder"][0, 0] = np.nan
    metrics = MetricRecord({"num-examples": CASES[node], "train_loss": float(node)})
    content = RecordDict({"arrays": to_array_record(arrays), "metrics": metrics})
    if fault == "silent":
        content = RecordDict({"arrays": to_array_record(arrays)})
    return Message(content, reply_to=message)


@pytest.fixture
def grid() -> Iterator[LocalGrid]:
    grid = LocalGrid(app, {node: {} for node in SHAPES}, 2)
    yield grid
    grid.close()


def run_round(
    strategy: Strategy, grid: LocalGrid, arrays: ArrayRecord | None = None
) -> tuple[dict[str, np.ndarray], MetricRecord | None]:
    messages = strategy.configure_train(1, arrays or ArrayRecord(), ConfigRecord(), grid)
    averaged, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    return from_array_record(averaged or ArrayRecord(), "the strategy"), metrics


def prepared(strategy: S) -> S:
    strategy.prepare(SHAPES, NAMES)
    return strategy


def test_layers_of_every_node_are_averaged_and_nothing_else_travels(grid: LocalGrid) -> None:
    strategy = prepared(AsymFedAvg())
    assert [strategy.groups.layers_of(node) for node in SHAPES] == [["encoder"]] * 3
    averaged, metrics = run_round(strategy, grid)
    assert averaged.keys() == {"encoder"}
    assert np.all(averaged["encoder"] == 2)
    assert metrics is not None
    assert metrics["train_loss"] == pytest.approx(2.5)  # by cases: 0.1 * 1 + 0.3 * 2 + 0.6 * 3


def test_averages_take_turns_in_two_memories_whenever_python_looks_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    allocate, allocated = SharedMemory.allocate, []
    monkeypatch.setattr(SharedMemory, "allocate", lambda size: allocated.append(size) or allocate(size))
    one_at_a_time = LocalGrid(app, {node: {} for node in SHAPES}, 1)
    strategy, arrays = prepared(AsymFedAvg()), ArrayRecord()
    gc.disable()
    try:
        for server_round in range(1, 6):
            messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), one_at_a_time))
            averaged, _ = strategy.aggregate_train(server_round, one_at_a_time.send_and_receive(messages))
            assert averaged is not None
            arrays = averaged
    finally:
        gc.enable()
        one_at_a_time.close()
    assert len(allocated) == 2


def test_weights_by_number_of_cases(grid: LocalGrid) -> None:
    averaged, _ = run_round(prepared(AsymFedAvg(weighting="num_cases")), grid)
    assert np.allclose(averaged["encoder"], 2.5)


def test_groups_share_what_two_nodes_have(grid: LocalGrid) -> None:
    strategy = prepared(AsymFedAvg(average_over="groups"))
    assert [sorted(strategy.groups.layers_of(node)) for node in SHAPES] == [
        ["encoder", "head"],
        ["encoder"],
        ["encoder", "head"],
    ]
    averaged, _ = run_round(strategy, grid)
    group = strategy.groups.group_of(1, "head")
    assert group == strategy.groups.group_of(3, "head")
    assert np.all(averaged[group] == 2)


def test_averages_come_back_under_the_nodes_own_names(grid: LocalGrid) -> None:
    strategy = prepared(AsymFedAvg(average_over="groups"))
    group = strategy.groups.group_of(1, "head")
    arrays = to_array_record(
        {"encoder": np.full((2, 3), 10, dtype=np.float32), group: np.full(2, 100, dtype=np.float32)}
    )
    averaged, _ = run_round(strategy, grid, arrays)
    assert np.all(averaged["encoder"] == 12)
    assert np.all(averaged[group] == 102)


def test_shared_fraction_counts_parameters() -> None:
    assert prepared(AsymFedAvg()).shared_fraction() == pytest.approx({"A": 6 / 12, "B": 6 / 11, "C": 6 / 8})


@pytest.mark.parametrize(
    ("fault", "problem"),
    [("error", "no disk"), ("nan", "node B sent layer encoder"), ("silent", "without its number of cases")],
)
def test_a_bad_reply_is_named_and_the_others_are_averaged(fault: str, problem: str) -> None:
    grid = LocalGrid(app, {1: {}, 2: {"fault": fault}, 3: {}}, 2)
    strategy = prepared(AsymFedAvg())
    averaged, _ = run_round(strategy, grid)
    assert list(strategy.failures) == [2]
    assert problem in strategy.failures[2]
    assert np.all(averaged["encoder"] == 2)  # of nodes 1 and 3
    grid.close()


@pytest.mark.parametrize("weighting", ["uniform", "num_cases"])
def test_buffers_are_averaged_as_all_layers_are(weighting: Literal["uniform", "num_cases"], grid: LocalGrid) -> None:
    results = []
    for buffers in ((), ("encoder",)):
        strategy = AsymFedAvg(weighting=weighting)
        strategy.prepare(SHAPES, NAMES, buffers=dict.fromkeys(SHAPES, buffers))
        results.append(run_round(strategy, grid)[0])
    assert results[0].keys() == results[1].keys() == {"encoder"}
    assert np.array_equal(results[0]["encoder"], results[1]["encoder"])


def test_no_exchange_sends_no_array(grid: LocalGrid) -> None:
    strategy = prepared(NoExchange())
    for message in strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid):
        assert not message.content.array_records
    averaged, metrics = run_round(strategy, grid)
    assert averaged == {}
    assert metrics is not None
    strategy.prepare(SHAPES, NAMES, "bfloat16")
    assert not strategy.has_state, "what does not travel is not rounded"


def test_flower_alone_can_run_it(grid: LocalGrid) -> None:
    """The strategy is one of Flower's: its own loop trains with it, without this project's server."""
    start = to_array_record({"encoder": np.full((2, 3), 10, dtype=np.float32)})
    result = prepared(AsymFedAvg()).start(grid, start, num_rounds=3)
    assert np.all(from_array_record(result.arrays, "a test")["encoder"] == 10 + 3 * 2)
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]


def test_a_round_of_some_nodes(grid: LocalGrid) -> None:
    strategy = prepared(AsymFedAvg(fraction_train=0.67, average_over="groups"))
    asked = strategy.sample(0, 1)
    assert len(asked) == 2
    (other,) = set(SHAPES) - set(asked)
    averaged, _ = run_round(strategy, grid)
    assert np.all(averaged["encoder"] == np.mean(asked))
    assert {node: strategy.last_round(node) for node in SHAPES} == {**dict.fromkeys(asked, 1), other: 0}

    messages = strategy.configure_train(2, ArrayRecord(), ConfigRecord({"nodes": [other]}), grid)
    assert [message.metadata.dst_node_id for message in messages] == [other]
    everyone = AsymFedAvg(average_over="groups")
    everyone.prepare(SHAPES, NAMES)
    unasked = everyone.configure_train(2, ArrayRecord(), ConfigRecord(), grid)
    averages, _ = strategy.aggregate_train(2, grid.send_and_receive(unasked))
    assert averages is not None
    assert strategy.failures == {node: f"node {NAMES[node]} was not asked to train in this round" for node in asked}
    assert np.all(from_array_record(averages, "the strategy")["encoder"] == other)


def test_replies_of_another_dtype_are_refused_and_named() -> None:
    grid = LocalGrid(app, {1: {}, 2: {"fault": "dtype"}, 3: {}}, 2)
    strategy = AsymFedAvg()
    strategy.prepare(SHAPES, NAMES, "bfloat16")
    averaged, _ = run_round(strategy, grid)
    assert strategy.failures == {2: "node B sent layer encoder as float64 instead of bfloat16"}
    assert averaged["encoder"].dtype.name == "bfloat16"
    grid.close()


def test_what_the_server_rounds_away_is_sent_later(grid: LocalGrid) -> None:
    """The mean of 1.1, 2.1 and 3.1, each as bfloat16, is none of bfloat16's numbers."""
    strategy = AsymFedAvg()
    strategy.prepare(SHAPES, NAMES, "bfloat16")
    arrays = to_array_record({"encoder": np.full((2, 3), 0.1, dtype=np.float32)})
    wanted, sent = 0.0, 0.0
    for _ in range(40):
        averaged, _ = run_round(strategy, grid, arrays)
        sent += float(averaged["encoder"][0, 0])
        wanted += sum(float(np.float32(node + 0.1).astype("bfloat16")) for node in SHAPES) / len(SHAPES)
    assert abs(sent - wanted) < 2.0**-7, "no more than one rounding is left over, whatever the rounds"
    strategy.begin_fold({})
    again, _ = run_round(strategy, grid, arrays)
    strategy.prepare(SHAPES, NAMES, "bfloat16")
    assert np.array_equal(again["encoder"], run_round(strategy, grid, arrays)[0]["encoder"]), "a fold begins with none"


def test_an_interrupted_run_goes_on_with_what_is_left_over(grid: LocalGrid, tmp_path: Path) -> None:
    start = to_array_record({"encoder": np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)})

    def rounds(strategy: AsymFedAvg, numbers: range) -> list[np.ndarray]:
        averages = []
        for server_round in numbers:
            # From the same values again: what is sent changes by what is left over alone.
            averaged, _ = run_round(strategy, grid, start)
            strategy.save(tmp_path, 0, server_round, to_array_record(averaged))
            averages.append(averaged["encoder"])
        return averages

    def new() -> AsymFedAvg:
        strategy = AsymFedAvg(weighting="num_cases")
        strategy.prepare(SHAPES, NAMES, "bfloat16")
        return strategy

    *_, third, fourth = rounds(new(), range(1, 5))
    remembered = [new().remembers(tmp_path, 0, server_round) for server_round in range(1, 6)]
    assert remembered == [False, True, True, True, False], "as many rounds as nodes have checkpoints of"
    after = new()
    restored = after.restore(tmp_path, 0, 3)
    assert restored is not None
    assert np.array_equal(from_array_record(restored, "a test")["encoder"], third)
    assert np.array_equal(rounds(after, range(4, 5))[0], fourth)
    assert prepared(AsymFedAvg()).restore(tmp_path, 0, 3) is None, "an average that is not rounded has no state"


def test_unknown_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match="weighting=trust: must be uniform or num_cases"):
        AsymFedAvg(weighting="trust")  # type: ignore[arg-type]
