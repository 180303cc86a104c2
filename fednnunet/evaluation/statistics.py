"""Is one set-up better than another? Tests on cases that both have scored, and means with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CASE_KEYS = ["node", "fold", "seed", "case"]
"""What makes two rows of two set-ups the same case."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; ``low`` and ``high`` are NaN for a single value."""

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


def wilcoxon_by_centre(cases: pd.DataFrame, setup: str, reference: str, metric: str = "dsc") -> dict[str, float]:
    """Two-tailed Wilcoxon signed-rank tests on the cases of each centre (``scipy.stats.wilcoxon``).

    Args:
        cases: one row a case (:func:`~fednnunet.reporting.tables.case_means`), with columns ``strategy``, ``node``,
            ``fold``, ``seed``, ``case`` and ``metric``.
        setup: value of ``strategy``.
        reference: the other set-up.
        metric: column that is compared; cases in which either set-up has no value are left out.

    Returns:
        Centre to p-value; 1 where no case differs, NaN where the set-ups have no case in common.
    """
    ours, theirs = (cases[cases["strategy"] == name].set_index(CASE_KEYS)[metric] for name in (setup, reference))
    differences = (ours - theirs).dropna()
    p_values = {}
    for centre in cases["node"].unique():
        of_centre = differences[differences.index.get_level_values("node") == centre]
        if of_centre.empty:
            p_values[str(centre)] = np.nan
        else:
            p_values[str(centre)] = float(stats.wilcoxon(of_centre).pvalue) if (of_centre != 0).any() else 1.0
    return p_values


def fisher(p_values: Sequence[float]) -> float:
    """One p-value for several centres, by Fisher's method (``scipy.stats.combine_pvalues``)."""
    return float(stats.combine_pvalues(list(p_values), method="fisher").pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of several comparisons (Holm 1979): each bounds the chance of any false finding."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
