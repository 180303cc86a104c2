"""What leaves a node of its scores, against pandas' means."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fednnunet.evaluation.told_scores import told_scores
from fednnunet.exchange.messages import CaseScore, EvaluateReply, MeanScore, Score
from fednnunet.reporting.tables.results_table import SCORES, summarise

pytestmark = pytest.mark.unit


def scores_of(centre: str, cases: int, model: str | None = None, seed: int = 0) -> list[CaseScore]:
    """Two labels a case; the second label's HD95 is undefined in the first two cases."""
    rng = np.random.default_rng(seed)
    return [
        CaseScore(
            centre=centre,
            case=case,
            label=label,
            model=model,
            dsc=rng.random(),
            hd95=None if label == "oedema" and case < 2 else 50 * rng.random(),
            surface_dsc=rng.random(),
            volume_error=rng.random() - 0.5,
        )
        for case in range(cases)
        for label in ("tumour", "oedema")
    ]


def means_of(scores: list[Score]) -> list[MeanScore]:
    assert all(isinstance(score, MeanScore) for score in scores)
    return [score for score in scores if isinstance(score, MeanScore)]


def test_the_mean_over_cases_is_that_of_a_report() -> None:
    rows = scores_of("Oslo", 7)
    overall = next(mean for mean in means_of(told_scores(rows, "mean")) if mean.label is None)
    table = pd.DataFrame([row.model_dump() for row in rows]).rename(columns={"centre": "node"})
    expected = summarise(table.assign(model="Oslo", strategy="asym", fold="0")).iloc[0]
    assert overall.num_cases == expected["n_cases"] == 7
    assert [getattr(overall, name) for name in SCORES] == pytest.approx([expected[name] for name in SCORES])


def test_means_are_of_each_centre_label_and_model() -> None:
    rows = [*scores_of("Oslo", 7), *scores_of("Oslo", 7, "Porto", seed=1), *scores_of("Riga", 5, seed=2)]
    means = {(mean.centre, mean.model, mean.label): mean for mean in means_of(told_scores(rows, "mean"))}
    groups = [("Oslo", None), ("Oslo", "Porto"), ("Riga", None)]
    assert list(means) == [(*group, label) for group in groups for label in (None, "tumour", "oedema")]
    of_label = [row.dsc for row in rows if (row.centre, row.model, row.label) == ("Oslo", "Porto", "oedema")]
    assert means["Oslo", "Porto", "oedema"].dsc == pytest.approx(np.mean([dsc for dsc in of_label if dsc is not None]))


def test_a_mean_of_fewer_than_five_cases_is_not_told() -> None:
    assert told_scores(scores_of("Oslo", 4), "mean") == []
    means = {mean.label: mean for mean in means_of(told_scores(scores_of("Oslo", 6), "mean"))}
    assert means["oedema"].hd95 is None, "it is defined in four of the six cases"
    assert means["oedema"].dsc is not None
    with pytest.raises(ValueError, match="num_cases"):
        MeanScore(centre="Oslo", num_cases=4)


def test_nothing_and_all_are_as_they_say() -> None:
    rows = scores_of("Oslo", 7)
    assert told_scores(rows, "nothing") == []
    assert told_scores(rows, "cases") == rows


@pytest.mark.parametrize("allowed", ["cases", "mean"])
def test_rows_and_means_are_told_apart_in_a_reply(allowed: str) -> None:
    sent = EvaluateReply(cases=told_scores(scores_of("Oslo", 7), allowed), seconds=1)  # type: ignore[arg-type]
    assert EvaluateReply.model_validate_json(sent.model_dump_json()) == sent
