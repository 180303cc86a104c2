"""What a node tells of its scores: rows of cases, means over cases, or nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from fednnunet.config.privacy import Scores
from fednnunet.exchange.messages import MIN_CASES, CaseScore, MeanScore, Score

METRICS = ("dsc", "hd95", "surface_dsc", "volume_error")


def told_scores(scores: Sequence[CaseScore], allowed: Scores) -> list[Score]:
    """What leaves a node of ``scores``, where ``allowed`` is the most that may."""
    if allowed == "cases":
        return list(scores)
    return [] if allowed == "nothing" else mean_scores(scores)


def scores_to_tell(by_fold: Sequence[Sequence[CaseScore]]) -> list[CaseScore]:
    """Scores whose means are to be told with the last fold: its own, and those of earlier ones that were too few.

    Args:
        by_fold: scores of the folds so far, in the order of training.
    """
    waiting: dict[str, list[CaseScore]] = defaultdict(list)
    for scores in by_fold:
        waiting = defaultdict(list, {centre: rows for centre, rows in waiting.items() if not _are_enough(rows)})
        for score in scores:
            waiting[score.centre].append(score)
    return [score for rows in waiting.values() for score in rows]


def _are_enough(rows: Iterable[CaseScore]) -> bool:
    return len({row.case for row in rows}) >= MIN_CASES


def mean_scores(scores: Iterable[CaseScore]) -> list[Score]:
    """Means over the cases of each centre and model: over labels first, then of each label.

    A score that is undefined in a case is left out of its mean, as in a report. Of fewer than
    :data:`~fednnunet.exchange.messages.MIN_CASES` cases there is none.
    """
    groups: dict[tuple[str, str | None], list[CaseScore]] = defaultdict(list)
    for score in scores:
        groups[score.centre, score.model].append(score)
    means: list[Score] = []
    for (centre, model), rows in groups.items():
        if not _are_enough(rows):
            continue
        num_cases = len({row.case for row in rows})
        for label in (None, *dict.fromkeys(row.label for row in rows)):
            of_label = [row for row in rows if label in (None, row.label)]
            values = {metric: _mean_over_cases(of_label, metric) for metric in METRICS}
            means.append(MeanScore(centre=centre, label=label, model=model, num_cases=num_cases, **values))
    return means


def _mean_over_cases(rows: Iterable[CaseScore], metric: str) -> float | None:
    by_case: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        value = getattr(row, metric)
        if value is not None:
            by_case[row.case].append(abs(value) if metric == "volume_error" else value)
    if len(by_case) < MIN_CASES:
        return None
    return _mean([_mean(values) for values in by_case.values()])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
