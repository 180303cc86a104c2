"""A run whose server sees sums of layers only, in nnU-Net's own training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from fednnunet.audit.reader import read_trail, summarise
from tests.integration.conftest import CENTRES, Train, final_weights

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("finished")]

SECURE = ("strategy=ffe", "privacy=secure", "privacy.least_steps=3")


def test_the_server_sees_sums_and_all_end_with_the_model_that_they_would_have(
    train: Train, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    """But for the rounding of sums, which the second round of training hardly enlarges."""
    run = tmp_path / "run"
    result = train(run, *SECURE)
    assert result.returncode == 0, result.stdout + result.stderr
    for name, theirs in final_weights(finished("ffe"), "Oslo").items():
        assert torch.allclose(final_weights(run, "Oslo")[name], theirs, atol=1e-4), name
    for node in CENTRES:
        trail = read_trail(run / "nodes" / node / "audit.jsonl")
        told = summarise(trail.entries)
        assert (told.unexpected, told.fewest) == ([], 3)
        initial = [entry for entry in trail.entries if entry.tensors and not entry.masked]
        assert [entry.asked["server_round"] for entry in initial] == [0] * len(initial), "nothing that was trained"
        assert told.masked > 0
        left = {path.name for path in (run / "nodes" / node).iterdir()}
        assert not left & {"secure_sums.key", "secure_round.json", "opened_sums.jsonl"}
    assert pd.read_csv(run / "rounds.csv")[["train_loss", "pseudo_dice", "update_norm"]].isna().all(axis=None)
    assert list(pd.read_csv(run / "round_means.csv")["nodes"]) == [3, 3]
    scored = pd.read_csv(run / "cases.csv")
    assert "Riga" in set(scored["node"]), "an external centre, with the average"
