"""How well an attack tells members from others: AUC, and true positives at few false ones, with intervals.

A score is low for a case that the attacker takes for a member (of what the model was trained on), such as its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fednnunet.evaluation.statistics import Interval

FALSE_POSITIVE_RATE = 0.05
RESAMPLES = 2000
Scores = tuple[np.ndarray, np.ndarray]
"""Scores of members and of others at one hospital, cases along the last axis."""
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def auc(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Chance that a member has a lower score than another case; 0.5 is guessing."""
    lower, equal = (
        compare(members[..., :, None], others[..., None, :]).mean(axis=(-2, -1)) for compare in (np.less, np.equal)
    )
    return lower + equal / 2


def true_positive_rate(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Part of the members below a threshold that at most :data:`FALSE_POSITIVE_RATE` of the others are below."""
    wrong = int(FALSE_POSITIVE_RATE * others.shape[-1])
    threshold = np.sort(others, axis=-1)[..., wrong : wrong + 1]
    return (members < threshold).mean(axis=-1)


def interval(seeds: Sequence[Sequence[Scores]], statistic: Statistic, confidence: float = 0.95) -> Interval:
    """A statistic of hospitals, its mean over the hospitals of a seed and over seeds, with a bootstrap interval.

    Seeds, which have images and trainings of their own, are drawn with replacement, and then the members and the others
    of every hospital.

    Args:
        seeds: the hospitals of every seed.
        statistic: :func:`auc` or :func:`true_positive_rate`.
        confidence: level of the percentile interval.
    """
    rng = np.random.default_rng(0)
    resampled = []  # of each seed: (resamples, places that it may be drawn for)
    for hospitals in seeds:
        drawn = [
            statistic(*(rng.choice(scores, (RESAMPLES, len(seeds), scores.size)) for scores in hospital))
            for hospital in hospitals
        ]
        resampled.append(np.mean(drawn, axis=0))
    chosen = rng.integers(len(seeds), size=(RESAMPLES, len(seeds)))
    values = np.take_along_axis(np.stack(resampled), chosen[None], axis=0)[0].mean(axis=1)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.mean(seed_values(seeds, statistic))), float(low), float(high))


def seed_values(seeds: Sequence[Sequence[Scores]], statistic: Statistic) -> list[float]:
    """The statistic of every seed, its mean over hospitals."""
    return [float(np.mean([statistic(*hospital) for hospital in hospitals])) for hospitals in seeds]
