"""Norms of updates against numpy's, and which are too large."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  numpy learns of bfloat16
import numpy as np
import pytest
from flwr.app import ConfigRecord

from fednnunet.errors import ProtocolError
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.exchange.update_limit import RoundReference, UpdateLimit
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from tests.support.train_replies import train_reply

GROUPS = {"a": "a", "b": "b@2", "count": "count"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_norm_is_numpys_of_the_change_over_the_start(dtype: str) -> None:
    rng = np.random.default_rng(0)
    start = {"a": rng.standard_normal((300, 500)).astype(dtype), "b@2": rng.standard_normal(70_000).astype(dtype)}
    sent = {"a": rng.standard_normal((300, 500)).astype(dtype), "b": rng.standard_normal(70_000).astype(dtype)}
    pairs = [(sent[layer].astype(float), start[GROUPS[layer]].astype(float)) for layer in sent]
    expected = np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs))
    start_of_round = RoundReference({**start, "count": np.array(7)})
    assert start_of_round.validate_and_measure({**sent, "count": np.array(10**9)}, GROUPS, "") == pytest.approx(
        expected, rel=1e-5
    )


def test_layers_that_were_not_sent_do_not_count() -> None:
    start_of_round = RoundReference({"a": np.ones(4, dtype=np.float32)})
    sent = {"a": np.full(4, 3, dtype=np.float32), "b": np.full(9, 1e9, dtype=np.float32)}
    assert start_of_round.validate_and_measure(sent, GROUPS, "") == 2
    assert RoundReference({}).validate_and_measure(sent, GROUPS, "") is None
    assert RoundReference({"a": np.zeros(4, dtype=np.float32)}).validate_and_measure(sent, GROUPS, "") is None


@pytest.mark.parametrize("layer", ["a", "b"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_what_is_beyond_squaring_is_infinite(layer: str, value: float) -> None:
    start_of_round = RoundReference({"a": np.ones(100_000, dtype=np.float32)})
    sent = {"a": np.ones(100_000, dtype=np.float32), "b": np.ones(100_000, dtype=np.float32)}
    sent[layer][-1] = value
    with pytest.raises(ProtocolError, match=f"node B sent layer {layer} with values that are not finite"):
        start_of_round.validate_and_measure(sent, GROUPS, "node B")
    sent[layer][-1] = 3e38
    assert start_of_round.validate_and_measure(sent, GROUPS, "node B") == (np.inf if layer == "a" else 0)


def after(*rounds: Sequence[float], times: float | None = 10) -> UpdateLimit:
    limit = UpdateLimit(times)
    limit.begin_fold(rounds)
    return limit


def refused(limit: UpdateLimit, norm: float, others: Sequence[float] = ()) -> bool:
    return limit.is_suspicious(norm) and limit.problem(norm, [norm, *others]) is not None


USUAL = (0.1, 0.12, 0.09)


@pytest.mark.parametrize(
    ("rounds", "norm", "others", "expected"),
    [
        ([USUAL], 0.99, [0.1, 0.1], False),
        ([USUAL], 1.0, [0.1, 0.1], True),
        ([USUAL], 1.0, [], True),
        ([USUAL], 1.0, [0.9, 1.1], False),
        ([USUAL], 1.0, [0.1, 1.0, 0.1], True),
        ([USUAL, (0.01, 0.01, 0.01), (0.01, 0.01, 0.01)], 0.1, [0.01, 0.01], True),
        ([(9, 9, 9), *[USUAL] * 5], 1.0, [0.1, 0.1], True),
        ([(0.2, 5.0)], 2.0, [0.1], True),
        ([(0, 0, 0)], 0.0005, [0, 0], False),
        ([(0, 0, 0)], 0.5, [0, 0], True),
        ([], 0.99, [0.01, 0.01], False),
        ([], 1.01, [0.1, 0.1], True),
        ([], 1.01, [0.9, 0.5], False),
        ([], 9.0, [0.1], False),
        ([], 10.0, [0.1], True),
        ([], np.inf, [0.1], True),
    ],
    ids=[
        *("less", "ten times", "alone", "all at once", "two of four", "last rounds", "long ago", "lower of two"),
        *("harmless", "after standing still", "first, small", "first, large", "first, all", "first of two"),
        *("first, ten times the weights", "infinite"),
    ],
)
def test_too_large_is_what_is_so_beside_the_last_rounds_and_its_own(
    rounds: list[Sequence[float]], norm: float, others: list[float], expected: bool
) -> None:
    assert refused(after(*rounds), norm, others) == expected


@pytest.mark.parametrize(
    ("rounds", "norm", "others", "expected"),
    [
        ([], 1e5, [1e5], False),
        ([], 9.9, [0.1, 0.1, 0.1], False),
        ([], 1e5, [0.1, 0.1, 0.1], True),
        ([USUAL], 9.9, [0.1], False),
        ([USUAL], 1e5, [0.1], True),
        ([USUAL], np.inf, [0.1], True),
    ],
    ids=["first of two", "their own size", "first, one of four", "later, their own size", "later", "infinite"],
)
def test_running_statistics_may_change_by_more_than_weights(
    rounds: list[Sequence[float]], norm: float, others: list[float], expected: bool
) -> None:
    limit = UpdateLimit(10, statistics=True)
    limit.begin_fold(rounds)
    assert refused(limit, norm, others) == expected


def test_running_statistics_are_measured_apart_from_weights(empty_grid: LocalGrid) -> None:
    start = {"w": np.ones(100, dtype=np.float32), "variance": np.ones(4, dtype=np.float32)}
    strategy = AsymFedAvg()
    nodes = {node: f"node{node}" for node in range(1, 5)}
    layers = {name: list(array.shape) for name, array in start.items()}
    strategy.prepare(dict.fromkeys(nodes, layers), nodes, buffers={node: ["variance"] for node in nodes})
    list(strategy.configure_train(1, to_array_record(start), ConfigRecord(), empty_grid))
    sent = {node: {"w": start["w"] * 1.01, "variance": start["variance"] * 3} for node in nodes}
    sent[2]["variance"] = start["variance"] * 1e6
    aggregated, _ = strategy.aggregate_train(1, [train_reply(node, arrays) for node, arrays in sent.items()])
    assert aggregated is not None
    assert strategy.failures.keys() == {2}
    assert "times as large as the running statistics, where 2 is usual" in strategy.failures[2]
    assert strategy.update_norms == pytest.approx(dict.fromkeys((1, 3, 4), 0.01), rel=1e-3)
    assert np.all(from_array_record(aggregated, "")["variance"] == 3)


def test_without_a_limit_nothing_is_too_large() -> None:
    assert not after(USUAL, times=None).is_suspicious(np.inf)
    assert not after(USUAL).is_suspicious(None)


def test_a_fold_begins_without_the_norms_of_another() -> None:
    limit = after(USUAL)
    limit.begin_fold()
    assert not limit.is_suspicious(0.99)


def test_limits_that_refuse_everything_are_refused() -> None:
    with pytest.raises(ValueError, match="max_update_norm=1: must be more than 1, or null"):
        AsymFedAvg(max_update_norm=1)


def test_nothing_depends_on_the_order_of_arrival_where_updates_are_too_large(empty_grid: LocalGrid) -> None:
    """Nodes 2 and 5 wait until all are in; 5 is refused, 2 is as far as the others and is averaged."""
    start = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    far = {1: 1.5, 2: 1.6, 3: 1.4, 4: 0.9, 5: 30.0}
    results = set()
    for order in itertools.permutations(far):
        strategy = AsymFedAvg()
        strategy.prepare({node: {"w": [1000]} for node in far}, {node: f"node{node}" for node in far})
        strategy.begin_fold({}, [[0.14, 0.16, 0.15]])
        list(strategy.configure_train(1, to_array_record({"w": start}), ConfigRecord(), empty_grid))
        aggregated, _ = strategy.aggregate_train(
            1, [train_reply(node, {"w": start * (1 + far[node])}) for node in order]
        )
        assert aggregated is not None
        assert strategy.failures.keys() == {5}
        assert "sent an update 30 times as large as the weights, where 1.5 is usual" in strategy.failures[5]
        assert strategy.update_norms == pytest.approx({node: far[node] for node in (1, 2, 3, 4)}, rel=1e-5)
        mean = from_array_record(aggregated, "")["w"]
        np.testing.assert_allclose(mean, start * (1 + np.mean([1.5, 1.6, 1.4, 0.9])), rtol=1e-6)
        results.add(mean.tobytes())
    assert len(results) == 1


def test_the_recorder_knows_the_norms_of_a_folds_rounds(tmp_path: Path) -> None:
    def row(node: str, norm: float | None) -> dict[str, object]:
        return {"node": node, "update_norm": norm}

    recorder = RunRecorder(tmp_path, "asym", [0, 1])
    for fold, factor in ((0, 1.0), (1, 10.0)):
        recorder.on_fold_start(fold, 2, 0)
        recorder.on_round_end(1, [row("A", 0.1 * factor), row("B", 1 / 3 * factor)])
        recorder.on_round_end(2, [row("A", None), row("B", 0.2 * factor)])
    again = RunRecorder(tmp_path, "asym", [0, 1])
    assert again.update_norms_of(0, 2) == [[0.1, 1 / 3], [0.2]]
    assert again.update_norms_of(1, 2) == [[1.0, 1 / 3 * 10], [2.0]]
    assert again.update_norms_of(1, 1) == [[1.0, 1 / 3 * 10]]
