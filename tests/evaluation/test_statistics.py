"""Statistics on paired scores, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fednnunet.evaluation.statistics import fisher, holm, mean_interval, wilcoxon_by_centre


def scores(strategy: str, node: str, values: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"strategy": strategy, "node": node, "fold": 0, "seed": 0, "case": range(len(values)), "dsc": values}
    )


def test_interval_is_students() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3
    assert interval.high - interval.mean == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)
    alone = mean_interval([0.5])
    assert alone.mean == 0.5
    assert np.isnan(alone.low)


def test_cases_are_paired_by_number_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(12), rng.random(12)
    ours = scores("ffe", "Oslo", list(first)).sample(frac=1, random_state=1)
    cases = pd.concat([ours, scores("local", "Oslo", list(second))])
    assert wilcoxon_by_centre(cases, "ffe", "local") == {"Oslo": stats.wilcoxon(first, second).pvalue}


def test_cases_without_a_value_are_left_out_and_ties_prove_nothing() -> None:
    values = [0.1, 0.5, 0.7, 0.2, 0.6, 0.9, 0.3]
    better = [value + 0.05 + 0.001 * place for place, value in enumerate(values)]
    cases = pd.concat(
        [
            scores("ffe", "Oslo", [*better, np.nan]),
            scores("local", "Oslo", [*values, 0.0]),
            scores("ffe", "Lund", values),
            scores("local", "Lund", values),
            scores("ffe", "Porto", values),
        ]
    )
    p_values = wilcoxon_by_centre(cases, "ffe", "local")
    assert p_values["Oslo"] == pytest.approx(2 / 2**7)  # all seven differ in one direction
    assert p_values["Lund"] == 1
    assert np.isnan(p_values["Porto"])


def test_fisher_and_holm_by_hand() -> None:
    p_values = [0.04, 0.2, 0.5]
    assert fisher(p_values) == pytest.approx(stats.chi2.sf(-2 * np.log(p_values).sum(), 6))
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert adjusted == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9})
    assert list(adjusted) == ["a", "b", "c", "d"]
