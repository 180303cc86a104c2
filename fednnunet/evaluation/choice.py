"""Choose a hospital's model among candidates by its held-out cases, and score the choice on cases that it never saw.

For each held-out fold the choice is made on the other folds' cases alone, then scored on the fold's (nested
cross-validation: Varma and Simon 2006, doi:10.1186/1471-2105-7-91). The simplest candidate within one standard error of
the best one is taken (Breiman et al. 1984, section 3.4.3), where the error is that of the paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fednnunet.exchange.messages import MIN_CASES

ALL_FOLDS = "all"
"""Value of ``fold`` of the choice that is made on all folds, for the model to hand over."""
MIN_MEANS = 3
"""Fewest means of folds to choose by, where a hospital tells no scores of cases."""
STANDARD_ERRORS = 1.0
"""How many standard errors count as noise."""
ROUNDING = 1e-12
"""Differences in DSC below it are those of the order of additions."""


@dataclass(frozen=True)
class Choice:
    """A choice.

    Attributes:
        fold: fold that is held out of it; :data:`ALL_FOLDS` for the final one.
        candidate: what was chosen.
        num: cases (or means of folds) that it was made on.
        reason: why it could not be made, so that ``candidate`` is the default; empty where it was.
    """

    fold: str
    candidate: str
    num: int
    reason: str = ""


@dataclass(frozen=True)
class Selection:
    """What one hospital chooses, with one seed.

    Attributes:
        scores: score of each candidate (columns, from simple to complex) in each case, or mean of a fold; indexed by
            ``fold`` and ``case``.
        weights: cases that each row stands for.
        choices: fold to the choice made without it.
        final: the choice made on all folds.
    """

    scores: pd.DataFrame
    weights: pd.Series
    choices: Mapping[str, Choice]
    final: Choice

    @property
    def selected(self) -> pd.Series:
        """Score of the selected candidate in each row of :attr:`scores`, by a choice that the row had no part in."""
        picked = [row.get(self.choices[fold].candidate, np.nan) for (fold, _), row in self.scores.iterrows()]
        return pd.Series(picked, index=self.scores.index, dtype=float)

    def of(self, candidate: str) -> pd.Series:
        """Score of a candidate in each row of :attr:`scores`; undefined where the hospital keeps its scores."""
        return self.scores.get(candidate, pd.Series(np.nan, index=self.scores.index))

    def mean(self, scores: pd.Series) -> float:
        """Mean of ``scores`` over cases; rows in which it is undefined are left out."""
        known = scores.notna()
        return float(np.average(scores[known], weights=self.weights[known])) if known.any() else float("nan")


def best_candidate(scores: np.ndarray, weights: np.ndarray) -> int:
    """Number of the candidate with the best mean, the first of equal ones.

    Args:
        scores: (rows, candidates), without NaN.
        weights: (rows,), cases that a row stands for.

    >>> best_candidate(np.array([[0.5, 0.7, 0.6], [0.5, 0.5, 0.6]]), np.ones(2))
    1
    """
    means = np.average(scores, axis=0, weights=weights)
    return int(np.flatnonzero(means >= means.max() - ROUNDING)[0])


def choose(scores: np.ndarray, weights: np.ndarray, standard_errors: float = STANDARD_ERRORS) -> int:
    """Number of the simplest candidate that is not worse than the best one beyond noise.

    Noise is ``standard_errors`` times the standard error of the mean of the best one's paired differences to the
    candidate. Rows may stand for unlike numbers of cases: the error is then that of a weighted mean (Cochran 1977,
    *Sampling Techniques*, 6.9), which with equal weights is the usual one.

    Args:
        scores: (rows, candidates), candidates from simple to complex, without NaN; at least two rows.
        weights: (rows,), cases that a row stands for.
        standard_errors: 0 takes the best one, whatever the noise.

    >>> scores = np.array([[0.5, 0.6], [0.5, 0.8], [0.5, 0.5], [0.5, 0.7]])  # differences 0.15 on average, error 0.065
    >>> choose(scores, np.ones(4)), choose(scores, np.ones(4), standard_errors=3)
    (1, 0)
    """
    best = best_candidate(scores, weights)
    for simpler in range(best):
        difference = scores[:, best] - scores[:, simpler]
        if np.average(difference, weights=weights) <= standard_errors * standard_error(difference, weights) + ROUNDING:
            return simpler
    return best


def standard_error(values: np.ndarray, weights: np.ndarray) -> float:
    """Standard error of the weighted mean of at least two values.

    >>> round(standard_error(np.array([1.0, 2.0, 3.0]), np.ones(3)), 6)  # 1 / sqrt(3)
    0.57735
    """
    number = len(values)
    deviations = weights * (values - np.average(values, weights=weights))
    return float(np.sqrt(number / (number - 1) * (deviations**2).sum()) / weights.sum())


def select(
    scores: pd.DataFrame,
    weights: pd.Series,
    default: str,
    least: int = MIN_CASES,
    standard_errors: float = STANDARD_ERRORS,
) -> Selection:
    """The choices of a hospital: one for each held-out fold, made without it, and one on all folds.

    Args:
        scores: score of each candidate (columns, from simple to complex), indexed by ``fold`` and ``case``.
        weights: cases that each row stands for, with the same index.
        default: candidate to take where there is nothing to choose by.
        least: fewest rows to choose by: :data:`~fednnunet.exchange.messages.MIN_CASES`, of means :data:`MIN_MEANS`.
        standard_errors: as in :func:`choose`.
    """
    of_fold = scores.index.get_level_values("fold")
    folds = list(dict.fromkeys(of_fold))
    choices = {fold: _choice(fold, scores, weights, of_fold != fold, default, least, standard_errors) for fold in folds}
    every = np.ones(len(scores), bool)
    final = _choice(ALL_FOLDS, scores, weights, every, default, least, standard_errors)
    return Selection(scores, weights, choices, final)


def _choice(
    fold: str,
    scores: pd.DataFrame,
    weights: pd.Series,
    used: np.ndarray,
    default: str,
    least: int,
    standard_errors: float,
) -> Choice:
    """A choice by the rows in ``used`` in which every candidate has a score."""
    if scores.index.get_level_values("fold").nunique() < 2:
        return Choice(fold, default, 0, "one fold leaves no other cases to choose by")
    known = scores[used].dropna()
    if len(known) < max(least, 2):
        where = "" if fold == ALL_FOLDS else " in the other folds"
        what = "means of folds" if least == MIN_MEANS else "cases"
        return Choice(fold, default, len(known), f"{len(known)} {what}{where}, and at least {least} are needed")
    number = choose(known.to_numpy(float), weights[known.index].to_numpy(float), standard_errors)
    return Choice(fold, str(scores.columns[number]), len(known))


def choose_default(candidates: Sequence[str], alone: str | None) -> str:
    """The federation's default: the simplest candidate that is not training alone, else the only one there is."""
    return next((name for name in candidates if name != alone), candidates[0])
