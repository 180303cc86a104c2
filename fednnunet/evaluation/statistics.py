"""Is one strategy better than another? Tests on cases that both have scored, and means with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CASE_KEYS = ["node", "fold", "seed", "case"]
"""Columns that identify a case across strategies."""

RESAMPLES = 9999
"""Number of resamples of a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """A mean, or another statistic, with its confidence interval; for a single value the bounds are NaN."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values, and Student's interval around it (``scipy.stats.t``)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.sem(values) * stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return Interval(mean, mean - half, mean + half)


def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the samples' means: every sample counts the same, however many values it has.

    >>> float(mean_of_means(np.array([1.0, 1.0, 1.0]), np.array([3.0])))
    2.0
    """
    return np.mean([values.mean(axis=axis) for values in samples], axis=0)


def bootstrap(
    samples: Sequence[Sequence[float]],
    statistic: Callable[..., np.ndarray] = mean_of_means,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of several samples, and the percentile interval of its bootstrap (``scipy.stats.bootstrap``).

    Values are drawn with replacement within each sample, so that every centre keeps its number of cases.

    Args:
        samples: one sequence of values per centre.
        statistic: function of the samples, along ``axis``.
        confidence: level of the interval.
        seed: seed of the draws; the same values give the same interval.

    Returns:
        Bounds are NaN where a sample has fewer than two values, the mean too where one has none.
    """
    arrays = tuple(np.asarray(values, dtype=float) for values in samples)
    if any(values.size == 0 for values in arrays):
        return Interval(np.nan, np.nan, np.nan)
    value = float(statistic(*arrays))
    if any(values.size < 2 for values in arrays):
        return Interval(value, np.nan, np.nan)
    interval = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        batch=500,  # bounds the memory that thousands of cases take
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(interval.low), float(interval.high))


def paired_differences(cases: pd.DataFrame, strategy: str, reference: str, metric: str = "dsc") -> pd.Series:
    """Score of ``strategy`` minus that of ``reference``, for every case (of a fold and seed) in which both have one.

    Args:
        cases: one row per case, as
            :func:`~fednnunet.reporting.tables.results_table.case_means` gives them, with columns ``strategy``,
            ``node``, ``fold``, ``seed``, ``case`` and ``metric``.
        strategy: value in column ``strategy``.
        reference: value of the strategy to compare with.
        metric: column to compare.

    Returns:
        Indexed by :data:`CASE_KEYS`.
    """
    ours, theirs = (cases[cases["strategy"] == name].set_index(CASE_KEYS)[metric] for name in (strategy, reference))
    return (ours - theirs).dropna()


def select_centre(differences: pd.Series, centre: str) -> pd.Series:
    """The :func:`paired_differences` of one centre."""
    return differences[differences.index.get_level_values("node") == centre]


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-tailed p-value of the Wilcoxon signed-rank test (``scipy.stats.wilcoxon``).

    Returns:
        1 where nothing differs, NaN where there is nothing to compare.
    """
    values = np.asarray(differences, dtype=float)
    if values.size == 0:
        return np.nan
    return float(stats.wilcoxon(values).pvalue) if values.any() else 1.0


def wilcoxon_by_centre(cases: pd.DataFrame, strategy: str, reference: str, metric: str = "dsc") -> dict[str, float]:
    """Centre to p-value of :func:`wilcoxon` on its :func:`paired_differences`."""
    differences = paired_differences(cases, strategy, reference, metric)
    return {str(centre): wilcoxon(select_centre(differences, centre)) for centre in cases["node"].unique()}


def rank_biserial(differences: Sequence[float]) -> float:
    """Matched-pairs rank-biserial correlation, the effect size of :func:`wilcoxon`.

    The share of the rank sum that favours the first of a pair minus the share that favours the second (Kerby 2014,
    doi:10.2466/11.IT.3.1): 1 where it is better in every case, -1 where it is worse in every case.

    Returns:
        0 where nothing differs, NaN where there is nothing to compare.

    >>> rank_biserial([0.1, 0.2, -0.3, 0.0])
    0.0
    """
    values = np.asarray(differences, dtype=float)
    if values.size == 0:
        return np.nan
    changed = values[values != 0]  # as the test leaves out cases without a difference
    if changed.size == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(changed))
    return float((ranks * np.sign(changed)).sum() / ranks.sum())


def fisher(p_values: Sequence[float]) -> float:
    """One p-value for several centres, by Fisher's method (``scipy.stats.combine_pvalues``)."""
    return float(stats.combine_pvalues(list(p_values), method="fisher").pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of several comparisons (Holm 1979): each bounds the chance of any false finding.

    A comparison that could not be made (NaN) stays so, and does not count.

    >>> holm({"asym": 0.01, "ffe": 0.04})
    {'asym': 0.02, 'ffe': 0.04}
    """
    made = sorted((p_value, name) for name, p_value in p_values.items() if not np.isnan(p_value))
    adjusted = dict.fromkeys(p_values, np.nan)
    largest = 0.0
    for rank, (p_value, name) in enumerate(made):
        largest = max(largest, min(1.0, (len(made) - rank) * p_value))
        adjusted[name] = largest
    return adjusted


def show_p_value(p_value: float) -> str:
    """A p-value as papers print it: three decimals, ``< 0.001`` below them, a dash where there is none.

    >>> show_p_value(0.0312), show_p_value(0.00004)
    ('0.031', '< 0.001')
    """
    if np.isnan(p_value):
        return "–"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
