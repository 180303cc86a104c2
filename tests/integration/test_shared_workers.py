"""Nodes that share a worker train as those with a worker each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.integration.conftest import CENTRES, Train, final_weights

pytestmark = pytest.mark.xdist_group("finished")


@pytest.mark.parametrize("cache_gib", ["0", pytest.param("0.5", marks=pytest.mark.nightly)])
def test_four_nodes_in_one_worker_give_the_result_of_a_worker_each(
    train: Train, finished: Callable[[str], Path], tmp_path: Path, cache_gib: str
) -> None:
    run, apart = tmp_path / "run", finished("ffe")
    result = train(run, "strategy=ffe", "federation.workers=1", f"federation.cache_gib={cache_gib}")
    assert result.returncode == 0, result.stderr
    rounds, expected = (pd.read_csv(folder / "rounds.csv") for folder in (run, apart))
    seconds = ["seconds_train", "seconds_exchange"]
    pd.testing.assert_frame_equal(rounds.drop(columns=seconds), expected.drop(columns=seconds))
    assert (run / "cases.csv").read_text() == (apart / "cases.csv").read_text()
    for node in CENTRES:
        ours, theirs = final_weights(run, node), final_weights(apart, node)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), node
        log = (run / "nodes" / node / "node.log").read_text()
        assert (f"node {node} leaves memory" in log) == (cache_gib == "0")
        assert f"Dataset2{'01' if node != 'Oslo' else '02'}_" not in log, "each node has its own log"


@pytest.mark.parametrize("dtype", ["int4", pytest.param("int8", marks=pytest.mark.nightly)])
def test_nodes_that_were_dropped_from_memory_get_layers_whole_and_end_as_those_that_were_not(
    train: Train, tmp_path: Path, dtype: str
) -> None:
    options = ("strategy=asym", "trainer.epochs=3", f"exchange.dtype={dtype}")
    together, apart = tmp_path / "together", tmp_path / "apart"
    for run, workers in ((together, ("federation.workers=1", "federation.cache_gib=0")), (apart, ())):
        result = train(run, *options, *workers)
        assert result.returncode == 0, result.stderr
    columns = ["round", "node", "train_loss", "val_loss", "pseudo_dice", "bytes_up"]
    ours, theirs = (pd.read_csv(run / "rounds.csv").set_index(["round", "node"]) for run in (together, apart))
    pd.testing.assert_frame_equal(ours[columns[2:]], theirs[columns[2:]])
    assert (ours.bytes_down[1] == theirs.bytes_down[1]).all()
    for server_round in (2, 3):
        steps = theirs.bytes_down[server_round]
        assert (ours.bytes_down[server_round] > steps + 0.9 * ours.bytes_down[1]).all(), "a step in vain, then all"
        assert (steps < 0.5 * ours.bytes_down[1]).all()
    assert (together / "cases.csv").read_text() == (apart / "cases.csv").read_text()
    for node in CENTRES:
        left, right = final_weights(together, node), final_weights(apart, node)
        assert all(torch.equal(left[name], value) for name, value in right.items()), node
