"""Federations whose layers travel in two bytes per value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.integration.conftest import CENTRES, Train, final_weights

pytestmark = pytest.mark.xdist_group("finished")

HEADER = 128
"""Bytes of numpy's header before the values of each layer."""
EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding once."""


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.bfloat16, id="bfloat16"),
        pytest.param(torch.float16, id="float16", marks=pytest.mark.nightly),
    ],
)
def test_half_the_bytes_and_the_same_model(
    train: Train, finished: Callable[[str], Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    run, exact = tmp_path / "run", finished("ffe")
    result = train(run, "strategy=ffe", f"exchange.dtype={str(dtype).removeprefix('torch.')}")
    assert result.returncode == 0, result.stdout + result.stderr

    ours, theirs = pd.read_csv(run / "rounds.csv"), pd.read_csv(exact / "rounds.csv")
    layers = len({tensor.data_ptr() for tensor in final_weights(run, "Oslo").values()})
    first, second = ours["round"] == 1, ours["round"] == 2
    for column, rows in (("bytes_up", first | second), ("bytes_down", second)):
        assert (2 * (ours[rows][column] - HEADER * layers) == theirs[rows][column] - HEADER * layers).all(), column
    assert (ours[first].bytes_down == theirs[first].bytes_down).all(), "the first values are not rounded"
    assert (ours[first].train_loss == theirs[first].train_loss).all()

    for node in CENTRES:
        rounded, whole = final_weights(run, node), final_weights(exact, node)
        for name, value in rounded.items():
            assert torch.equal(value.to(dtype).to(torch.float32), value), f"{name} is what was sent"
        distance = sum(float((value - whole[name]).square().sum()) for name, value in rounded.items()) ** 0.5
        size = sum(float(value.square().sum()) for value in whole.values()) ** 0.5
        assert 0 < distance < EPSILON[dtype] * size
