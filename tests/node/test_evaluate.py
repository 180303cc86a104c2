"""What a node tells of its scores, and what it has of them itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fednnunet.config.privacy import CaseNoiseConfig, NodeNoiseConfig, PrivacyConfig
from fednnunet.exchange.messages import CaseScore, MeanScore, Score
from fednnunet.node.evaluate import tell, tell_fold


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


def test_cases_that_are_too_few_for_a_mean_are_told_with_those_of_a_later_fold(tmp_path: Path) -> None:
    config = SimpleNamespace(privacy=PrivacyConfig(scores="mean"), folds=[0, 1, 2, 3])
    settings: Any = SimpleNamespace(folder=tmp_path, config=config)
    scored = [CaseScore(centre="Oslo", case=case, label="tumour", dsc=case / 16, hd95=None) for case in range(14)]
    of_fold = {0: scored[:3], 1: scored[3:6], 2: scored[6:11], 3: scored[11:]}
    told: dict[int, list[Score]] = {}
    for _ in range(2):  # asked again, the same
        told |= {fold: tell_fold(rows, fold, settings) for fold, rows in of_fold.items()}
    means = {fold: rows[0] for fold, rows in told.items() if rows}
    assert {fold: (mean.num_cases, mean.dsc) for fold, mean in means.items() if isinstance(mean, MeanScore)} == {
        1: (6, sum(range(6)) / 6 / 16),
        2: (5, sum(range(6, 11)) / 5 / 16),
    }


@pytest.mark.parametrize(("key", "noise"), [("case", CaseNoiseConfig(epsilon=8)), ("node", NodeNoiseConfig(epsilon=8))])
def test_scores_of_the_nodes_own_model_stay_where_noise_hides_what_training_tells(
    tmp_path: Path, key: str, noise: Any
) -> None:
    scores = [CaseScore(centre="Oslo", case=case, label="tumour", dsc=case / 10, hd95=None) for case in range(6)]
    for privacy, told in ((PrivacyConfig(), 6), (PrivacyConfig(scores="mean"), 2), (PrivacyConfig(**{key: noise}), 0)):
        config = SimpleNamespace(privacy=privacy, folds=[0])
        settings: Any = SimpleNamespace(folder=tmp_path, config=config)
        assert len(tell_fold(scores, 0, settings, personal=True)) == told
    assert pd.read_csv(tmp_path / "cases_fold_0_personal.csv")["dsc"].tolist() == [score.dsc for score in scores]
    assert [path.name for path in tmp_path.iterdir()] == ["cases_fold_0_personal.csv"]
