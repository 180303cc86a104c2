"""What a node tells of its scores, and what it has of them itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fednnunet.config.privacy import PrivacyConfig
from fednnunet.exchange.messages import CaseScore
from fednnunet.node.evaluate import tell


@pytest.mark.parametrize(("allowed", "rows"), [("cases", 6), ("mean", 2), ("nothing", 0)])
def test_a_node_has_all_scores_and_tells_what_its_limits_allow(tmp_path: Path, allowed: Any, rows: int) -> None:
    config = SimpleNamespace(privacy=PrivacyConfig(scores=allowed))
    settings: Any = SimpleNamespace(folder=tmp_path, config=config)
    scores = [CaseScore(centre="Oslo", case=case, label="tumour", dsc=case / 10, hd95=None) for case in range(6)]
    assert len(tell(scores, settings, "cases_fold_0.csv")) == rows
    if allowed == "cases":
        assert list(tmp_path.iterdir()) == []
    else:
        own = pd.read_csv(tmp_path / "cases_fold_0.csv")
        assert own["dsc"].tolist() == [score.dsc for score in scores]
