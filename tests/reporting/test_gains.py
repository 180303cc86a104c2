"""Who gains over training alone: against scipy and figures by hand; what hospitals select in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fednnunet.errors import DataError
from fednnunet.evaluation.statistics import Interval, bootstrap
from fednnunet.reporting.gains import Gains, collect_gains, gains_by_selections, judge
from fednnunet.reporting.results import collect_results
from fednnunet.reporting.run_folder import read_runs
from fednnunet.reporting.scores import Scores
from fednnunet.reporting.selected import SELECTED, order_candidates, select_by_scores

MakeRun = Callable[..., Path]
METRICS = ["dsc", "hd95", "surface_dsc", "volume_error"]
NO_MEANS = pd.DataFrame(columns=["strategy", "node", "fold", "n_cases", *METRICS, "n_empty", "seed"])


def case_scores(dsc: dict[str, dict[str, Sequence[float]]], folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Strategy to hospital to DSC of its cases, dealt out to the folds in turn."""
    rows = [
        {"strategy": strategy, "node": node, "fold": str(case % folds), "seed": seed, "case": case, "dsc": value}
        for strategy, nodes in dsc.items()
        for node, values in nodes.items()
        for case, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(hd95=1.0, surface_dsc=1.0, volume_error=0.0, n_empty=0)


def gains_of(dsc: dict[str, dict[str, Sequence[float]]], folds: int = 5) -> Gains:
    scores = case_scores(dsc, folds)
    found = collect_gains(Scores(scores, NO_MEANS), list(dict.fromkeys(scores["node"])), None)
    assert found is not None
    return found


RISES, FALLS = [0.6, 0.7, 0.65, 0.62, 0.68, 0.66, 0.64, 0.7], [0.4, 0.35, 0.45, 0.3, 0.41, 0.38, 0.44, 0.4]
TWO = {"local": {"Oslo": [0.5] * 8, "Porto": [0.5] * 8}, "ffe": {"Oslo": RISES, "Porto": FALLS}}


def test_a_hospital_that_loses_selects_training_alone() -> None:
    found = gains_of(TWO)
    assert found.columns == ["ffe", SELECTED]
    assert [found.verdict(node, "ffe") for node in ("Oslo", "Porto")] == ["gains", "loses"]
    assert [found.verdict(node, SELECTED) for node in ("Oslo", "Porto")] == ["gains", "no difference seen"]
    assert [found.choices(node) for node in ("Oslo", "Porto")] == ["ffe", "local"]
    expected = bootstrap([np.array(RISES) - 0.5])
    assert found.differences["Oslo", "ffe"] == expected
    assert found.differences["Oslo", SELECTED] == expected
    assert found.differences["Porto", SELECTED] == Interval(0.0, 0.0, 0.0)
    assert found.sentences() == [
        "ffe: of 2 hospitals 1 gain (Oslo) and 1 lose (Porto).",
        "selected: of 2 hospitals 1 gain (Oslo), 0 lose and 1 show no difference (Porto).",
    ]


def test_verdicts_are_about_the_interval() -> None:
    assert judge(Interval(0.1, 0.01, 0.2)) == "gains"
    assert judge(Interval(-0.1, -0.2, -0.01)) == "loses"
    assert judge(Interval(0.1, -0.01, 0.2)) == "no difference seen"
    assert judge(Interval(0.1, np.nan, np.nan)) == "no interval"


def test_few_cases_have_a_difference_and_no_verdict() -> None:
    few, five = ({"local": {"Oslo": [0.5] * number}, "ffe": {"Oslo": [0.7] * number}} for number in (4, 5))
    assert gains_of(five).verdict("Oslo", "ffe") == "gains"
    for found in (
        gains_of(few),
        gains_by_selections(select_by_scores(Scores(case_scores(few), NO_MEANS), ["Oslo"]), ["Oslo"]),
    ):
        assert found is not None
        assert found.verdict("Oslo", "ffe") == "no interval"
        assert found.differences["Oslo", "ffe"].mean == pytest.approx(0.2)


def test_candidates_are_ordered_from_simple_to_complex_and_pooled_images_are_none() -> None:
    names = ["local + ffe", "ditto", "ffe fine-tuned", "centralized", "krum", "ffe", "ditto shared", "local", "asym"]
    names += ["asym fine-tuned", "ffe ensemble"]
    assert order_candidates(names) == [
        *("local", "asym", "ffe", "krum", "ditto shared"),
        *("asym fine-tuned", "ffe fine-tuned", "ditto", "local + ffe", "ffe ensemble"),
    ]


def test_with_one_fold_nothing_is_selected_and_differences_stay() -> None:
    found = gains_of(TWO, folds=1)
    assert found.selections is None
    assert found.columns == ["ffe"]
    assert found.notes == [
        "Oslo, Porto cannot choose: one fold leaves no other cases to choose by. "
        "The federation's default is taken: ffe."
    ]


def test_a_choice_by_all_cases_whose_score_is_the_defaults_is_called_so() -> None:
    found = gains_of({"local": {"Oslo": [0.5] * 7}, "ffe": {"Oslo": FALLS[:7]}}, folds=2)  # four cases and three
    assert found.selections is not None
    assert found.selections.of_node["Oslo"][0].final.candidate == "local"
    assert found.notes == [
        "Oslo can choose by all cases, but not without the fold that is scored: 3 cases in the other folds, and at "
        "least 5 are needed. The score of selected is that of the federation's default there: ffe."
    ]


def test_candidates_scored_on_other_splits_are_refused() -> None:
    scores = case_scores({"local": {"Oslo": [0.5] * 8}, "ffe": {"Oslo": RISES}})
    moved = scores.copy()
    moved.loc[(moved["strategy"] == "ffe") & (moved["case"] == 3), "fold"] = "0"
    message = "Oslo, seed 0: local and ffe did not score the same cases in fold 0, 3; choose among runs of the same"
    with pytest.raises(DataError, match=message):
        select_by_scores(Scores(moved, NO_MEANS), ["Oslo"])
    found = collect_gains(Scores(moved, NO_MEANS), ["Oslo"], None)
    assert found is not None
    assert found.selections is None
    assert found.columns == ["ffe"]
    assert message in found.notes[0]


def test_seeds_choose_apart() -> None:
    first = case_scores(TWO)
    second = case_scores({"local": TWO["local"], "ffe": {"Oslo": FALLS, "Porto": RISES}}, seed=1)
    found = select_by_scores(Scores(pd.concat([first, second]), NO_MEANS), ["Oslo", "Porto"])
    finals = {node: {seed: one.final.candidate for seed, one in seeds.items()} for node, seeds in found.of_node.items()}
    assert finals == {"Oslo": {0: "ffe", 1: "local"}, "Porto": {0: "local", 1: "ffe"}}


def test_a_seed_without_a_run_of_a_candidate_is_refused() -> None:
    first, second = case_scores(TWO), case_scores({"local": TWO["local"]}, seed=1)
    with pytest.raises(DataError, match="Oslo, seed 1: local and ffe did not score the same cases in fold 0, 1, 2"):
        select_by_scores(Scores(pd.concat([first, second]), NO_MEANS), ["Oslo", "Porto"])


def test_means_of_folds_are_chosen_by_and_have_no_interval() -> None:
    # ffe is 0.1 better in a fold of 30 cases, 0.02 worse in three of 5: over cases (3 - 0.3) / 45.
    told = pd.DataFrame(
        [
            {"strategy": strategy, "node": "Oslo", "fold": str(fold), "seed": 0, "n_cases": cases, "dsc": dsc}
            for fold, cases, gain in ((0, 30, 0.1), (1, 5, -0.02), (2, 5, -0.02), (3, 5, -0.02))
            for strategy, dsc in (("local", 0.5), ("ffe", 0.5 + gain))
        ]
    ).assign(hd95=1.0, surface_dsc=1.0, volume_error=0.0, n_empty=0)
    kept = told[told["fold"] == "0"].assign(node="Porto", n_cases=0, dsc=np.nan)
    cases = case_scores(TWO).query("node != 'Oslo' and node != 'Porto'")
    found = collect_gains(Scores(cases, pd.concat([told, kept])), ["Oslo", "Porto"], None)
    assert found is not None
    assert found.selections is not None
    assert found.choices("Oslo") == "ffe (without one fold: ffe 3, local 1)"
    assert found.differences["Oslo", "ffe"].mean == pytest.approx(0.06)
    assert found.differences["Oslo", SELECTED].mean == pytest.approx(-0.3 / 45)
    assert found.verdict("Oslo", "ffe") == "no interval"
    assert found.verdict("Porto", SELECTED) == "–"
    assert found.selections.kept == ["Porto"]
    assert found.notes == [
        "Oslo: chosen by means of folds, as the hospital tells no scores of cases.",
        "Porto told no scores: only they can choose, by fednnunet select on their own disks; until then they have the "
        "federation's default, ffe.",
    ]


def test_nothing_is_said_where_nobody_trained_alone() -> None:
    scores = Scores(case_scores({"asym": TWO["local"], "ffe": TWO["ffe"]}), NO_MEANS)
    assert collect_gains(scores, ["Oslo", "Porto"], None) is None


def test_the_report_of_five_folds_says_what_each_hospital_selects(make_run: MakeRun) -> None:
    runs = [make_run(strategy, fold=[0, 1, 2, 3, 4]) for strategy in ("local", "asym", "centralized")]
    results = collect_results(read_runs(runs))
    assert results.gains is not None
    assert results.gains.columns == ["asym", SELECTED]
    assert results.gains.nodes == ["ISPY1", "ISPY2", "DUKE", "NACT"]
    scores = results.scores.query("node == 'DUKE'").pivot(index="case", columns="strategy", values="dsc")
    assert results.gains.differences["DUKE", "asym"].mean == pytest.approx((scores["asym"] - scores["local"]).mean())
    assert results.gains.choices("DUKE") == "asym"
