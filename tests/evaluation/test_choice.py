"""Choices worked out by hand; what is held out of a choice never changes it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fednnunet.evaluation.choice import MIN_MEANS, Selection, choose, choose_default, select, standard_error

CANDIDATES = ("local", "asym", "ffe")


def table(rows: dict[tuple[str, int], tuple[float, ...]], candidates: tuple[str, ...] = CANDIDATES) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(rows, names=["fold", "case"])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(candidates))


def selected(scores: pd.DataFrame, weights: list[float] | None = None, **options: float) -> Selection:
    counted = pd.Series(weights or [1.0] * len(scores), index=scores.index)
    return select(scores, counted, "asym", **options)  # type: ignore[arg-type]


def random_scores(seed: int, folds: int = 5, cases: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.3, 0.8, (folds * cases, 1)) + rng.normal([0, 0.03, 0.05], 0.08, (folds * cases, 3))
    index = pd.MultiIndex.from_tuples([(str(n // cases), n) for n in range(folds * cases)], names=["fold", "case"])
    return pd.DataFrame(values, index=index, columns=list(CANDIDATES))


def test_a_clear_gain_is_taken_and_one_within_noise_is_not() -> None:
    # Differences of the second to the first: 0.1, 0.3, 0.0, 0.2; mean 0.15, sd 0.1291, error 0.0645.
    clear = np.array([[0.5, 0.6], [0.5, 0.8], [0.5, 0.5], [0.5, 0.7]])
    assert choose(clear, np.ones(4)) == 1
    assert choose(clear, np.ones(4), standard_errors=2.3) == 1  # 0.148
    assert choose(clear, np.ones(4), standard_errors=2.4) == 0  # 0.155
    # 0.1, -0.1, 0.1, -0.06; mean 0.01, sd 0.1052, error 0.0526.
    noisy = np.array([[0.5, 0.6], [0.5, 0.4], [0.5, 0.6], [0.5, 0.44]])
    assert choose(noisy, np.ones(4)) == 0
    assert choose(noisy, np.ones(4), standard_errors=0) == 1


def test_the_simplest_within_noise_of_the_best_is_taken() -> None:
    # ffe is best: 0.2 above local in every case; 0.01 above asym on average, with an error of 0.011.
    scores = np.array([[0.5, 0.70, 0.7], [0.5, 0.68, 0.7], [0.5, 0.72, 0.7], [0.5, 0.66, 0.7]])
    assert choose(scores, np.ones(4)) == 1
    assert choose(scores, np.ones(4), standard_errors=0) == 2


def test_equal_scores_go_to_the_simpler_candidate() -> None:
    assert choose(np.array([[0.5, 0.5, 0.5], [0.7, 0.7, 0.7]]), np.ones(2), standard_errors=0) == 0
    # 0.1 + 0.2 is not 0.3: the same mean but for the order of additions.
    assert choose(np.array([[0.3, 0.1 + 0.2], [0.3, 0.3]]), np.ones(2), standard_errors=0) == 0


def test_the_error_is_scipys_and_that_of_a_weighted_mean() -> None:
    values = np.random.default_rng(0).normal(size=9)
    assert standard_error(values, np.ones(9)) == pytest.approx(stats.sem(values))
    assert standard_error(values, np.full(9, 7.0)) == pytest.approx(stats.sem(values))
    # Means 0 and 1 of 1 and 3 cases: mean 0.75, deviations -0.75 and 3 * 0.25, sqrt(2 * 1.125) / 4.
    assert standard_error(np.array([0.0, 1.0]), np.array([1.0, 3.0])) == pytest.approx(0.375)


def test_each_fold_is_scored_by_the_choice_of_the_others() -> None:
    # asym is better by 0.2 in folds 0 and 1, and worse by 0.5 in fold 2: without fold 2 it is chosen, else local.
    rows = {(str(fold), case): (0.5, 0.7) for fold in (0, 1) for case in range(3)}
    rows |= {("2", case): (0.5, 0.0) for case in range(3)}
    found = selected(table(rows, ("local", "asym")))
    assert {fold: choice.candidate for fold, choice in found.choices.items()} == {
        "0": "local",
        "1": "local",
        "2": "asym",
    }
    assert found.final.candidate == "local"
    assert found.selected.groupby("fold").mean().to_dict() == {"0": 0.5, "1": 0.5, "2": 0.0}


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_a_fold_never_change_which_candidate_is_chosen_for_it(seed: int) -> None:
    scores = random_scores(seed)
    before = selected(scores)
    rng = np.random.default_rng(seed)
    for fold in before.choices:
        others = scores.copy()
        of_fold = others.index.get_level_values("fold") == fold
        others.loc[of_fold] = rng.choice([0.0, 1.0, np.nan], (of_fold.sum(), 3))
        assert selected(others).choices[fold] == before.choices[fold]


def test_scores_of_other_folds_do_change_it() -> None:
    scores = random_scores(0)
    others = scores.index.get_level_values("fold") != "0"
    for name in CANDIDATES:
        better = scores.copy()
        better.loc[others, name] = 1.0
        assert selected(better).choices["0"].candidate == name


def test_one_fold_takes_the_default_and_says_why() -> None:
    found = selected(table({("0", case): (0.9, 0.1, 0.1) for case in range(20)}))
    for choice in (found.choices["0"], found.final):
        assert choice.candidate == "asym"
        assert choice.reason == "one fold leaves no other cases to choose by"


def test_few_cases_take_the_default_where_they_are_too_few() -> None:
    # Six cases in folds of two and one: without fold 0 there are four, without another five.
    folds = ("0", "0", "1", "2", "3", "4")
    found = selected(table({(fold, case): (0.9, 0.1, 0.1) for case, fold in enumerate(folds)}))
    assert found.choices["0"].candidate == "asym"
    assert found.choices["0"].reason == "4 cases in the other folds, and at least 5 are needed"
    assert [found.choices[fold].candidate for fold in "1234"] == ["local"] * 4
    assert found.final.candidate == "local"
    assert found.final.reason == ""


def test_a_case_without_a_score_of_one_candidate_plays_no_part() -> None:
    rows = {(str(case % 5), case): (0.5, 0.6, 0.5) for case in range(10)}
    rows[("0", 10)] = (1.0, np.nan, 1.0)  # would turn the mean in favour of local and ffe
    found = selected(table(rows))
    assert found.final.candidate == "asym"
    assert found.final.num == 10
    assert found.mean(found.scores["asym"]) == pytest.approx(0.6)


def test_means_of_folds_count_by_their_cases() -> None:
    # asym is better by 0.1 in a fold of 30 cases and worse by 0.02 in three of 5: mean of folds 0.01, of cases 0.06.
    rows = {("0", 0): (0.5, 0.6), **{(fold, 0): (0.5, 0.48) for fold in "123"}}
    scores = table(rows, ("local", "asym"))
    weighted = selected(scores, [30.0, 5.0, 5.0, 5.0], least=MIN_MEANS)
    assert weighted.final.candidate == "asym"
    assert weighted.choices["0"].candidate == "local"
    assert selected(scores, least=MIN_MEANS).final.candidate == "local"
    assert weighted.mean(weighted.scores["asym"]) == pytest.approx((30 * 0.6 + 15 * 0.48) / 45)


def test_two_means_are_too_few() -> None:
    found = selected(table({(fold, 0): (0.9, 0.1, 0.1) for fold in "012"}), least=MIN_MEANS)
    assert found.choices["0"].reason == "2 means of folds in the other folds, and at least 3 are needed"
    assert found.final.candidate == "local"


def test_the_default_is_the_simplest_that_is_not_training_alone() -> None:
    assert choose_default(["local", "asym", "ffe"], "local") == "asym"
    assert choose_default(["asym", "ffe"], None) == "asym"
