"""Strategies against the reference: the rows, the marks, the sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fednnunet.errors import ConfigError
from fednnunet.evaluation.statistics import fisher
from fednnunet.reporting.comparison import (
    ALL_CENTRES,
    COMPARISON_COLUMNS,
    Comparison,
    choose_reference,
    compare_strategies,
)

CENTRES = {"Oslo": 20, "Lund": 8, "Porto": 12}
GAINS = {"asym": 0.02, "ffe": 0.08}


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """Two seeds; Porto is external; ffe lacks one case of Oslo in seed 1."""
    rng = np.random.default_rng(0)
    rows = []
    for centre, number in CENTRES.items():
        for case in range(number):
            for seed in (0, 1):
                base = rng.uniform(0.3, 0.8)
                rows.append(("local", centre, "0", seed, case, base))
                rows += [(name, centre, "0", seed, case, base + rng.normal(g, 0.05)) for name, g in GAINS.items()]
    frame = pd.DataFrame(rows, columns=["strategy", "node", "fold", "seed", "case", "dsc"])
    return frame.query("not (strategy == 'ffe' and node == 'Oslo' and case == 3 and seed == 1)")


@pytest.fixture(scope="module")
def comparison(scores: pd.DataFrame) -> Comparison:
    return compare_strategies(scores, "local", ["Oslo", "Lund"], ["Porto"])


def differences(scores: pd.DataFrame, strategy: str, centre: str) -> pd.Series:
    wide = scores[scores["node"] == centre].pivot(index=["seed", "case"], columns="strategy", values="dsc")
    return (wide[strategy] - wide["local"]).dropna()


def test_one_row_per_centre_and_one_for_all_training_centres(comparison: Comparison) -> None:
    assert list(comparison.rows.columns) == COMPARISON_COLUMNS
    assert comparison.strategies == ["asym", "ffe"]
    assert comparison.rows["node"].to_list() == ["Oslo", "Lund", ALL_CENTRES, "Porto"] * 2
    ffe = comparison.rows[comparison.rows["strategy"] == "ffe"].set_index("node")
    assert ffe["n_cases"].to_list() == [20, 8, 28, 12]
    assert ffe["n_pairs"].to_list() == [39, 16, 55, 24]


def test_rows_of_centres_are_scipys(comparison: Comparison, scores: pd.DataFrame) -> None:
    for row in comparison.rows.query(f"node != '{ALL_CENTRES}'").itertuples():
        expected = differences(scores, row.strategy, row.node)
        assert row.p == pytest.approx(stats.wilcoxon(expected).pvalue)
        of_cases = expected.groupby("case").mean()
        assert row.difference == pytest.approx(of_cases.mean())
        interval = stats.bootstrap((of_cases,), np.mean, method="percentile", rng=1).confidence_interval
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high), abs=0.003)


def test_all_centres_are_the_mean_of_the_training_centres_and_fishers_p(comparison: Comparison) -> None:
    for strategy in GAINS:
        rows = comparison.rows[comparison.rows["strategy"] == strategy].set_index("node")
        training = rows.loc[["Oslo", "Lund"]]
        assert rows.loc[ALL_CENTRES, "difference"] == pytest.approx(training["difference"].mean())
        assert rows.loc[ALL_CENTRES, "effect_size"] == pytest.approx(training["effect_size"].mean())
        assert rows.loc[ALL_CENTRES, "p"] == pytest.approx(fisher(training["p"].to_list()))
        assert rows.loc[ALL_CENTRES, "low"] < rows.loc[ALL_CENTRES, "difference"] < rows.loc[ALL_CENTRES, "high"]


def test_holm_is_over_the_set_ups_at_a_centre(comparison: Comparison) -> None:
    for _, rows in comparison.rows.groupby("node"):
        small, large = sorted(rows["p"])
        assert sorted(rows["p_holm"]) == pytest.approx([min(1, 2 * small), max(min(1, 2 * small), large)])


def test_the_column_of_means_gets_the_mark_of_all_centres(comparison: Comparison) -> None:
    expected = {
        (row.strategy, "mean" if row.node == ALL_CENTRES else row.node)
        for row in comparison.rows.itertuples()
        if row.p_holm < 0.05
    }
    assert ("ffe", "mean") in expected
    assert comparison.significant == expected


def test_a_centre_without_common_cases_has_no_row_of_numbers_and_no_mean(scores: pd.DataFrame) -> None:
    without = scores.query("not (strategy == 'ffe' and node == 'Lund')")
    rows = compare_strategies(without, "local", ["Oslo", "Lund"], ["Porto"]).rows.set_index(["strategy", "node"])
    empty = rows.loc[[("ffe", "Lund"), ("ffe", ALL_CENTRES)], ["difference", "effect_size", "p", "p_holm"]]
    assert empty.isna().all(axis=None)
    assert rows.loc[("asym", "Lund"), "p_holm"] == rows.loc[("asym", "Lund"), "p"], "nothing to correct for"


def test_sentences_have_the_papers_form() -> None:
    rows = [
        ("ffe", "local", "ISPY1", 9, 9, 0.032, 0.01, 0.05, 0.4, 0.009, 0.018),
        ("ffe", "local", "NACT", 9, 9, -0.109, -0.2, -0.05, 0.4, 0.0004, 0.0008),
        ("ffe", "local", ALL_CENTRES, 18, 18, -0.04, -0.1, 0.02, 0.4, 0.02, 0.04),
        ("ffe", "local", "KAUNO", 9, 9, 0.001, -0.1, 0.1, 0.1, 0.8576, 0.9),
        ("ffe", "local", "GUMED", 0, 0, *([np.nan] * 6)),
        ("asym", "local", "ISPY1", 0, 0, *([np.nan] * 6)),
    ]
    comparison = Comparison("local", pd.DataFrame(rows, columns=COMPARISON_COLUMNS), ["KAUNO", "GUMED"])
    assert comparison.sentences() == [
        "ffe over local: ISPY1 +3.2 % (p = 0.009), NACT −10.9 % (p < 0.001), "
        "all centres −4.0 % (Fisher’s method: p = 0.020), KAUNO (external) +0.1 % (p = 0.858).",
        "asym over local: no case in common.",
    ]


def test_the_default_reference_is_local() -> None:
    assert choose_reference(["local", "ffe"], None) == "local"
    assert choose_reference(["local memory=mixed", "ffe"], None) == "local memory=mixed"
    assert choose_reference(["local memory=mixed", "local memory=8", "ffe"], None) is None
    assert choose_reference(["ffe", "asym"], None) is None
    assert choose_reference(["ffe", "centralized"], "centralized") == "centralized"


@pytest.mark.parametrize(
    ("strategies", "problem"),
    [(["asym", "ffe"], "no strategy with scores"), (["local a=1", "local a=2"], "several strategies")],
)
def test_an_unknown_reference_is_refused_with_the_known_names(strategies: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"reference local: {problem} .* choose one of: {', '.join(strategies)}"):
        choose_reference(strategies, "local")


def test_many_nodes_are_counted_in_a_sentence() -> None:
    rows = [
        ("ffe", "local", f"H{place:03}", 9, 9, (place - 9) / 100, 0.0, 0.0, 0.4, 0.009, 0.01 if place > 37 else 0.5)
        for place in range(40)
    ]
    rows.append(("ffe", "local", ALL_CENTRES, 360, 360, 0.105, 0.1, 0.12, 0.4, 0.02, 0.04))
    rows.append(("ffe", "local", "X00", 9, 9, -0.02, 0.0, 0.0, 0.1, 0.86, 0.9))
    comparison = Comparison("local", pd.DataFrame(rows, columns=COMPARISON_COLUMNS), ["X00"])
    assert comparison.sentences() == [
        "ffe over local: all centres +10.5 % (Fisher’s method: p = 0.020); 30 of 40 training nodes gain, from −9.0 % "
        "(H000) to +30.0 % (H039), 2 of them differ by Holm’s correction; 0 of 1 external nodes gain, from −2.0 % "
        "(X00) to −2.0 % (X00), 0 of them differ by Holm’s correction."
    ]
