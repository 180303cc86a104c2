"""Statistics on paired scores, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fednnunet.evaluation.statistics import (
    bootstrap,
    fisher,
    holm,
    mean_interval,
    paired_differences,
    rank_biserial,
    show_p_value,
    wilcoxon,
    wilcoxon_by_centre,
)


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


def test_a_comparison_that_was_not_made_does_not_count_for_holm() -> None:
    assert holm({"a": 0.04, "b": np.nan, "c": 0.03}) == pytest.approx({"a": 0.06, "b": np.nan, "c": 0.06}, nan_ok=True)


def test_bootstrap_of_one_centre_is_scipys() -> None:
    values = np.random.default_rng(3).normal(0.6, 0.1, 40)
    interval = bootstrap([values])
    assert interval.mean == pytest.approx(values.mean())
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=5).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.002)
    assert bootstrap([values]) == interval, "the same values give the same interval"


def test_bootstrap_draws_within_centres_and_weighs_centres_alike() -> None:
    same = bootstrap([[0.2] * 30, [0.6] * 3])
    assert (same.mean, same.low, same.high) == pytest.approx((0.4, 0.4, 0.4))
    large, small = np.random.default_rng(0).normal(0.5, 0.1, (2, 200))
    interval = bootstrap([large, small[:8]])
    assert interval.mean == pytest.approx((large.mean() + small[:8].mean()) / 2)
    error = np.sqrt(large.var() / 200 + small[:8].var() / 8) / 2  # of a mean of two independent means
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_bootstrap_of_too_few_cases_has_no_interval() -> None:
    alone, none = bootstrap([[0.5, 0.7], [0.2]]), bootstrap([[0.5, 0.7], []])
    assert alone.mean == pytest.approx(0.4)
    assert np.isnan([alone.low, alone.high, none.mean, none.low]).all()


def test_effect_size_by_hand() -> None:
    # Ranks of the sizes 0.1, 0.2, 0.3, 0.4 are 1 to 4; the only loss has rank 2: (1 + 3 + 4 - 2) / 10.
    assert rank_biserial([0.1, -0.2, 0.3, 0.4]) == pytest.approx(0.6)
    assert rank_biserial([0.0, 0.1, 0.3]) == 1
    assert rank_biserial([-0.1, -0.3]) == -1
    assert rank_biserial([0.0, 0.0]) == 0
    assert np.isnan(rank_biserial([]))


def test_effect_size_is_that_of_the_tests_statistic() -> None:
    differences = np.random.default_rng(1).normal(0.05, 0.1, 25)
    gains = stats.wilcoxon(differences, alternative="greater").statistic  # sum of the ranks of gains
    assert rank_biserial(differences) == pytest.approx(2 * gains / (25 * 26 / 2) - 1)


def test_only_cases_that_both_scored_are_paired_by_fold_and_seed() -> None:
    ours = scores("ffe", "Oslo", [0.5, 0.6, 0.7])
    theirs = pd.concat([scores("local", "Oslo", [0.4, 0.4]), scores("local", "Oslo", [0.1] * 3).assign(seed=1)])
    differences = paired_differences(pd.concat([ours, theirs]), "ffe", "local")
    assert differences.to_list() == pytest.approx([0.1, 0.2])
    assert wilcoxon(differences) == stats.wilcoxon([0.1, 0.2]).pvalue


@pytest.mark.parametrize(
    ("p_value", "text"), [(0.0005, "< 0.001"), (0.001, "0.001"), (0.8576, "0.858"), (1.0, "1.000"), (np.nan, "–")]
)
def test_p_values_are_printed_as_in_the_paper(p_value: float, text: str) -> None:
    assert show_p_value(p_value) == text
