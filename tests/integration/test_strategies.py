"""A federation with each strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.integration.conftest import Train, result_folder

pytestmark = pytest.mark.slow

TWO_NODES = ("dataset.centres=[{name: Oslo, dataset: 201}, {name: Lund, dataset: 203}]", "trainer.iterations=2")
FIRST = "encoder.stages.0.0.convs.0.conv.weight"


def weights(run: Path, node: str) -> dict[str, torch.Tensor]:
    return torch.load(result_folder(run, node) / "checkpoint_final.pth", weights_only=False)["network_weights"]


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"])
def test_nodes_end_with_one_model(train: Train, tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    result = train(run, f"strategy={strategy}", *TWO_NODES)
    assert result.returncode == 0, result.stdout + result.stderr
    rounds = pd.read_csv(run / "rounds.csv")
    assert set(rounds.strategy) == {strategy}
    assert rounds[["train_loss", "val_loss"]].notna().all(axis=None)
    ours, theirs = weights(run, "Oslo"), weights(run, "Lund")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not list(run.glob("strategy_fold_*"))


def test_what_is_kept_local_is_not_exchanged(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(run, "strategy=ffe", "strategy.keep_local=[seg_layers,norm]", *TWO_NODES)
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = weights(run, "Oslo"), weights(run, "Lund")
    assert torch.equal(ours[FIRST], theirs[FIRST])
    for kept in ("decoder.seg_layers.0.weight", FIRST.replace("conv.weight", "norm.weight")):
        assert not torch.equal(ours[kept], theirs[kept]), kept


def test_the_proximal_term_holds_layers_near_the_average(
    train: Train, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    """With a large mu the exchanged layers hardly leave what the round began with."""
    free, held = tmp_path / "free", tmp_path / "held"
    options = ("strategy=fedprox", *TWO_NODES, "trainer.iterations=6")
    assert train(free, *options, "strategy.aggregation.proximal_mu=0").returncode == 0
    assert train(held, *options, "strategy.aggregation.proximal_mu=50").returncode == 0
    first = {run: pd.read_csv(run / "rounds.csv") for run in (free, held)}
    assert first[free].train_loss[0] != first[held].train_loss[0]


def test_layers_matched_by_resolution(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("strategy.aggregation.matching=resolution", "strategy.aggregation.share=groups")
    result = train(run, "strategy=asym", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    head = weights(run, "Porto")["decoder.seg_layers.3.weight"], weights(run, "Oslo")["decoder.seg_layers.2.weight"]
    assert torch.equal(*head), "the heads of the full resolution are one"
