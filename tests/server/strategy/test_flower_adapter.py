"""Flower's strategies behind our checks, over real Flower messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, FedYogi, Krum, Strategy

from fednnunet.errors import ConfigError
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.server.strategy.flower_adapter import FlowerStrategy
from tests.support.train_replies import train_reply

SHAPES = {"encoder": [3, 2], "decoder": [4]}
NODES = {1: "A", 2: "B", 3: "C"}
CASES = {1: 10, 2: 30, 3: 60}


pytestmark = pytest.mark.usefixtures("empty_grid")


def reply(node: int, server_round: int, change: Callable[[dict[str, np.ndarray]], None] | None = None) -> Message:
    """What a node sends: values that depend on node and round only."""
    rng = np.random.default_rng([node, server_round])
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    if change is not None:
        change(arrays)
    return train_reply(node, arrays, CASES[node], train_loss=float(node))


def prepared(strategy: Strategy, **options: Any) -> FlowerStrategy:
    flower = FlowerStrategy(strategy, **options)
    flower.prepare(dict.fromkeys(NODES, SHAPES), NODES)
    return flower


def start() -> ArrayRecord:
    return to_array_record({name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()})


def run_rounds(
    flower: FlowerStrategy, arrays: ArrayRecord, rounds: range, order: tuple[int, ...] = (1, 2, 3)
) -> ArrayRecord:
    for server_round in rounds:
        grid: Any = None
        messages = list(flower.configure_train(server_round, arrays, ConfigRecord({"fold": 0}), grid))
        assert sorted(message.metadata.dst_node_id for message in messages) == [1, 2, 3]
        aggregated, _ = flower.aggregate_train(server_round, [reply(node, server_round) for node in order])
        assert aggregated is not None
        arrays = aggregated
    return arrays


def values(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return from_array_record(arrays, "test")


FAMILY: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9),
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Krum": Krum,
}


@pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY)
def test_results_have_the_layers_and_dtypes_that_were_sent_whatever_the_order(make: Callable[[], Strategy]) -> None:
    once = values(run_rounds(prepared(make()), start(), range(1, 3)))
    again = values(run_rounds(prepared(make()), start(), range(1, 3), order=(3, 1, 2)))
    assert {name: list(array.shape) for name, array in once.items()} == SHAPES
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in once.values())
    assert all(np.array_equal(once[name], again[name]) for name in SHAPES)


def test_median_and_mean_are_numpys() -> None:
    sent = [values(reply(node, 1).content.array_records["arrays"])["decoder"] for node in NODES]
    median = values(run_rounds(prepared(FedMedian()), start(), range(1, 2)))["decoder"]
    assert np.array_equal(median, np.median(sent, axis=0))
    mean = values(run_rounds(prepared(FedAvg()), start(), range(1, 2)))["decoder"]
    np.testing.assert_allclose(mean, np.average(sent, axis=0, weights=list(CASES.values())), rtol=1e-6)


@pytest.mark.parametrize("make", [FAMILY["FedAvgM"], FedAdam, FedYogi])
def test_an_interrupted_run_goes_on_with_its_momentum(make: Callable[[], Strategy], tmp_path: Path) -> None:
    whole = values(run_rounds(prepared(make()), start(), range(1, 5)))
    before = prepared(make())
    arrays = start()
    for server_round in (1, 2):
        arrays = run_rounds(before, arrays, range(server_round, server_round + 1))
        before.save(tmp_path, 0, server_round, arrays)
    after = prepared(make())
    restored = after.restore(tmp_path, 0, 2)
    assert restored is not None
    resumed = values(run_rounds(after, restored, range(3, 5)))
    assert all(np.array_equal(whole[name], resumed[name]) for name in SHAPES)
    assert [after.remembers(tmp_path, 0, server_round) for server_round in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("make", [FAMILY["FedAvgM"], FedAdam, FedYogi])
def test_a_fold_begins_without_the_momentum_of_another(make: Callable[[], Strategy]) -> None:
    flower = prepared(make())
    once = values(run_rounds(flower, start(), range(1, 4)))
    flower.begin_fold({})
    again = values(run_rounds(flower, start(), range(1, 4)))
    assert all(np.array_equal(once[name], again[name]) for name in SHAPES)


def ask_all(flower: FlowerStrategy) -> None:
    grid: Any = None
    flower.configure_train(1, start(), ConfigRecord(), grid)


@pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY)
def test_strategies_work_in_float32_whatever_travels(make: Callable[[], Strategy], tmp_path: Path) -> None:
    def rounded(arrays: dict[str, np.ndarray]) -> None:
        arrays.update({name: array.astype("bfloat16") for name, array in arrays.items()})

    def rounds(flower: FlowerStrategy, arrays: ArrayRecord, numbers: range) -> ArrayRecord:
        grid: Any = None
        for server_round in numbers:
            list(flower.configure_train(server_round, arrays, ConfigRecord({"fold": 0}), grid))
            aggregated, _ = flower.aggregate_train(server_round, [reply(n, server_round, rounded) for n in NODES])
            assert aggregated is not None, flower.failures
            arrays = aggregated
            flower.save(tmp_path, 0, server_round, arrays)
        return arrays

    def new() -> FlowerStrategy:
        flower = FlowerStrategy(make())
        flower.prepare(dict.fromkeys(NODES, SHAPES), NODES, "bfloat16")
        return flower

    whole = values(rounds(new(), start(), range(1, 5)))
    assert {array.dtype.name for array in whole.values()} == {"bfloat16"}
    after = new()
    restored = after.restore(tmp_path, 0, 3)
    assert restored is not None
    resumed = values(rounds(after, restored, range(4, 5)))
    assert all(np.array_equal(whole[name], resumed[name]) for name in SHAPES)


def spoil(arrays: dict[str, np.ndarray]) -> None:
    arrays["decoder"][0] = np.nan


def test_a_bad_reply_is_left_out_by_name() -> None:
    flower = prepared(FedMedian())
    ask_all(flower)
    replies = [reply(1, 1), reply(2, 1, spoil), reply(3, 1)]
    aggregated, _ = flower.aggregate_train(1, replies)
    assert flower.failures == {2: "node B sent layer decoder with values that are not finite"}
    assert aggregated is not None
    sent = [values(reply(node, 1).content.array_records["arrays"])["decoder"] for node in (1, 3)]
    assert np.array_equal(values(aggregated)["decoder"], np.median(sent, axis=0))


def test_a_second_reply_of_a_node_is_refused() -> None:
    flower = prepared(FedMedian())
    ask_all(flower)
    aggregated, _ = flower.aggregate_train(1, [reply(1, 1), reply(2, 1), reply(1, 2), reply(3, 1)])
    assert flower.failures == {1: "node A has answered this round already"}
    assert aggregated is not None
    sent = [values(reply(node, 1).content.array_records["arrays"])["decoder"] for node in NODES]
    assert np.array_equal(values(aggregated)["decoder"], np.median(sent, axis=0))


def test_networks_must_be_the_same() -> None:
    flower = FlowerStrategy(FedMedian())
    with pytest.raises(ConfigError, match="FedMedian needs the same network at every node; A and C"):
        flower.prepare({1: SHAPES, 2: SHAPES, 3: {"encoder": [3, 2]}}, NODES)
    with pytest.raises(ConfigError, match="FedMedian needs 2 nodes; there are 1"):
        flower.prepare({1: SHAPES}, NODES)


def test_layers_can_be_kept_local() -> None:
    flower = prepared(FedAvg(), keep_local=["decoder"])
    assert flower.groups.layers_of(1) == ["encoder"]
    with pytest.raises(ConfigError, match="no layer has the part head; there are, for example, decoder, encoder"):
        prepared(FedAvg(), keep_local=["head"])


# buffers ------------------------------------------------------------------------------------------------

STATISTICS = {"norm.running_var": [4], "norm.num_batches_tracked": []}


def statistics_of(node: int, server_round: int) -> dict[str, np.ndarray]:
    """Variances that fall by nine tenths in a round, as a momentum would make negative, and a counter."""
    return {
        "norm.running_var": np.full(4, 10.0 ** (3 - server_round) * node, dtype=np.float32),
        "norm.num_batches_tracked": np.array(server_round * 50 + node, dtype=np.int64),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY)
def test_running_statistics_are_averaged_outside_of_every_strategy(
    make: Callable[[], Strategy], dtype: Any, tmp_path: Path
) -> None:
    grid: Any = None

    def rounds(buffers: dict[str, list[int]]) -> list[dict[str, np.ndarray]]:
        layers, after_rounds = {**SHAPES, **buffers}, []
        zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
        arrays = to_array_record(zeros | (statistics_of(1, 0) if buffers else {}))
        for server_round in range(1, 5):
            if server_round in (1, 3):  # the first process was interrupted after two rounds
                flower = FlowerStrategy(make(), max_update_norm=None)
                flower.prepare(dict.fromkeys(NODES, layers), NODES, dtype, {node: list(buffers) for node in NODES})
            if server_round == 3:
                arrays = flower.restore(tmp_path, 0, 2) or arrays
            list(flower.configure_train(server_round, arrays, ConfigRecord({"fold": 0}), grid))
            replies = []
            for node in NODES:
                trained = values(reply(node, server_round).content.array_records["arrays"])
                sent = {name: array.astype(dtype) for name, array in trained.items()}
                replies.append(
                    train_reply(node, sent | (statistics_of(node, server_round) if buffers else {}), CASES[node])
                )
            aggregated, _ = flower.aggregate_train(server_round, replies)
            assert aggregated is not None, flower.failures
            arrays = aggregated
            flower.save(tmp_path, 0, server_round, arrays)
            after_rounds.append(values(arrays))
        return after_rounds

    for server_round, (with_them, without) in enumerate(zip(rounds(STATISTICS), rounds({}), strict=True), start=1):
        assert all(np.array_equal(with_them[name], without[name]) for name in SHAPES), "as if there were none"
        means = {name: with_them[name] for name in STATISTICS}
        for name, mean in means.items():
            sent = [statistics_of(node, server_round)[name] for node in NODES]
            exact = np.average(np.asarray(sent, dtype=np.float64), axis=0, weights=list(CASES.values()))
            assert np.array_equal(mean, np.rint(exact) if mean.dtype == np.int64 else exact.astype(np.float32))
        assert [mean.dtype.name for mean in means.values()] == ["float32", "int64"]
