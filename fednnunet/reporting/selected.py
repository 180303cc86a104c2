"""What each hospital would choose among the models that were trained, from the scores of a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fednnunet.errors import DataError
from fednnunet.evaluation.choice import MIN_MEANS, STANDARD_ERRORS, Selection, choose_default, select
from fednnunet.exchange.messages import MIN_CASES
from fednnunet.listing import join_first
from fednnunet.reporting.comparison import DEFAULT_REFERENCE, choose_reference
from fednnunet.reporting.scores import Scores
from fednnunet.reporting.tables.results_table import NOT_PRIVATE, order_strategies
from fednnunet.run_files import FINE_TUNED, SHARED

SELECTED = "selected"
"""Name of what hospitals choose, beside those of strategies."""
AVERAGED, ENSEMBLED = " + ", "ensemble"
"""Parts of the names of candidates: softmax outputs averaged over two models, and over all nodes' models."""
NAMED = 5
"""Most hospitals that a sentence names; of more it says how many they are."""


@dataclass(frozen=True)
class Selections:
    """What hospitals choose.

    Attributes:
        candidates: names, from simple to complex.
        alone: the candidate of training alone; None if it was not run.
        default: what a hospital takes that cannot choose.
        of_node: hospital to seed to its selection.
        kept: hospitals whose scores stay with them, so that only they can choose.
        notes: what a reader must know, a sentence each.
    """

    candidates: list[str]
    alone: str | None
    default: str
    of_node: Mapping[str, Mapping[int, Selection]]
    kept: Sequence[str]
    notes: Sequence[str]

    @property
    def best_single(self) -> str | None:
        """The candidate other than training alone with the best mean over hospitals; None if there is none.

        One whose scores a hospital keeps is left out.
        """
        found = [selection for seeds in self.of_node.values() for selection in seeds.values()]
        others = [name for name in self.candidates if name != self.alone and all(name in one.scores for one in found)]
        if not others or not found:
            return None
        return max(others, key=lambda name: float(np.mean([one.mean(one.scores[name]) for one in found])))


def order_candidates(names: Sequence[str]) -> list[str]:
    """Candidates from simple to complex; pooled images are none.

    Training alone; one model that strategies trained together, in the order of the results table; the same fine-tuned
    at the hospital; a personal network beside it; averages of two models; ensembles of all nodes' models.
    """
    kept = [name for name in order_strategies(names) if name.split(" ")[0] != NOT_PRIVATE]
    return sorted(kept, key=lambda name: _complexity(name, kept))


def _complexity(name: str, names: Sequence[str]) -> int:
    words = name.split(" ")
    if ENSEMBLED in words:
        return 5
    if AVERAGED in name:
        return 4
    if is_beside_shared(name, names):
        return 3
    if FINE_TUNED in words:
        return 2
    return 0 if words[0] == DEFAULT_REFERENCE else 1


def is_average(name: str) -> bool:
    """Whether a candidate averages the outputs of several models.

    >>> [is_average(name) for name in ("local", "local + asym", "asym ensemble", "asym fine-tuned")]
    [False, True, True, False]
    """
    return ENSEMBLED in name.split(" ") or AVERAGED in name


def is_beside_shared(name: str, names: Collection[str]) -> bool:
    """Whether a candidate is Ditto's personal network: the shared one beside it has a name, too.

    >>> is_beside_shared("ditto", ["local", "ditto", "ditto shared"])
    True
    """
    first, *others = name.split(" ")
    return " ".join([first, SHARED, *others]) in names


def select_by_scores(
    scores: Scores, training: Sequence[str], default: str | None = None, standard_errors: float = STANDARD_ERRORS
) -> Selections:
    """Choose for every training hospital, by its cases or, where it tells none, by its means of folds.

    Args:
        scores: scores of runs, with a column ``seed``.
        training: hospitals; an external one has no held-out folds, and nothing to choose by.
        default: what a hospital takes that cannot choose; None for the simplest that is not training alone.
        standard_errors: what counts as noise (:func:`~fednnunet.evaluation.choice.choose`).

    Raises:
        DataError: there are less than two candidates, no such default, or candidates were not scored on the same cases
            of the same folds at a hospital.
    """
    told = scores.means[scores.means["n_cases"] > 0]
    summary = scores.summary.query("n_cases > 0").assign(case=0) if len(told) else told
    withheld = _withheld(scores, training)
    names = order_candidates([*scores.cases["strategy"], *scores.means["strategy"]])
    candidates = [name for name in names if any(name not in withheld[node] for node in training)] or names
    if len(candidates) < 2:
        raise DataError(
            f"to choose among: {', '.join(candidates) or 'nothing'}; name runs of at least two strategies"
            f"{', of which one that pools images is none' if not candidates else ''}"
        )
    alone = choose_reference(candidates, None)
    chosen_default = choose_default(candidates, alone) if default is None else default
    if chosen_default not in candidates:
        raise DataError(f"default {chosen_default}: no such candidate; choose one of: {', '.join(candidates)}")
    kept = set(scores.means.loc[scores.means["n_cases"] == 0, "node"]) - set(told["node"]) - set(scores.cases["node"])
    of_node: dict[str, dict[int, Selection]] = {}
    for node in training:
        is_told = bool((told["node"] == node).any())
        rows = summary[summary["node"] == node] if is_told else scores.cases[scores.cases["node"] == node]
        told_of = [name for name in candidates if name not in withheld[node]]
        rows = rows[rows["strategy"].isin(told_of)]
        for seed, of_seed in rows.groupby("seed"):
            table, weights = _table(of_seed, told_of, f"{node}, seed {seed}", is_told)
            least = MIN_MEANS if is_told else MIN_CASES
            found = select(table, weights, chosen_default, least, standard_errors)
            of_node.setdefault(node, {})[int(str(seed))] = found
    by_means = [node for node in of_node if (told["node"] == node).any()]
    keeping = [node for node in training if node in kept]
    notes = _notes(of_node, chosen_default, by_means, keeping)
    for name in dict.fromkeys(name for node in of_node for name in withheld[node]):
        those = [node for node in of_node if name in withheld[node]]
        notes.append(f"{_who(those)} told no scores of {name}: only on their own disks can it be chosen.")
    return Selections(candidates, alone, chosen_default, of_node, keeping, notes)


def _withheld(scores: Scores, training: Sequence[str]) -> dict[str, list[str]]:
    """Hospital to the strategies whose scores stay with it: of its own model, where noise hides what training tells."""
    told = scores.means["n_cases"] > 0
    seen = pd.concat([scores.cases[["node", "strategy"]], scores.means.loc[told, ["node", "strategy"]]])
    pairs = set(seen.itertuples(index=False, name=None))
    kept = scores.means.loc[~told, ["node", "strategy"]].drop_duplicates().itertuples(index=False, name=None)
    withheld: dict[str, list[str]] = {node: [] for node in training}
    for node, strategy in kept:
        if node in withheld and (node, strategy) not in pairs:
            withheld[node].append(strategy)
    return withheld


def _table(rows: pd.DataFrame, candidates: Sequence[str], where: str, is_told: bool) -> tuple[pd.DataFrame, pd.Series]:
    """Scores by fold and case (rows) and candidate, and the cases that each row stands for.

    Raises:
        DataError: candidates lack rows that others have, or means are over unlike numbers of cases.
    """
    keys = ["fold", "case"]
    if (repeated := rows.duplicated([*keys, "strategy"])).any():
        row = rows[repeated].iloc[0]
        raise DataError(f"{where}: {row['strategy']} has scores of fold {row['fold']} twice; name one run of each")
    first = rows[rows["strategy"] == next(name for name in candidates if name in set(rows["strategy"]))]
    expected = pd.MultiIndex.from_frame(first[keys])
    for name in candidates:
        found = pd.MultiIndex.from_frame(rows.loc[rows["strategy"] == name, keys])
        if differing := sorted(set(expected.symmetric_difference(found).get_level_values("fold"))):
            raise DataError(
                f"{where}: {first['strategy'].iloc[0]} and {name} did not score the same cases in fold "
                f"{join_first(differing, 5)}; choose among runs of the same images, folds and splits"
            )
    table = rows.pivot(index=keys, columns="strategy", values="dsc").astype(float)[list(candidates)].sort_index()
    if not is_told:
        return table, pd.Series(1.0, index=table.index)
    counts = rows.pivot(index=keys, columns="strategy", values="n_cases").astype(float).sort_index()
    if (counts.nunique(axis=1) > 1).any():
        raise DataError(f"{where}: means are over unlike numbers of cases; choose among runs of the same splits")
    return table, counts.iloc[:, 0]


def _notes(
    of_node: Mapping[str, Mapping[int, Selection]], default: str, by_means: Sequence[str], kept: Sequence[str]
) -> list[str]:
    notes = []
    without_choice: dict[str, list[str]] = {}
    without_score: dict[str, list[str]] = {}
    for node, seeds in of_node.items():
        for seed, selection in seeds.items():
            who = node if len(seeds) == 1 else f"{node}, seed {seed}"
            if selection.final.reason:
                without_choice.setdefault(selection.final.reason, []).append(who)
            elif unmade := [choice for choice in selection.choices.values() if choice.reason]:
                folds = join_first([choice.fold for choice in unmade], 5)
                of_some = "" if len(unmade) == len(selection.choices) else f" (held-out fold {folds})"
                without_score.setdefault(unmade[0].reason, []).append(f"{who}{of_some}")
    for reason, those in without_choice.items():
        notes.append(f"{_who(those)} cannot choose: {reason}. The federation's default is taken: {default}.")
    for reason, those in without_score.items():
        notes.append(
            f"{_who(those)} can choose by all cases, but not without the fold that is scored: {reason}. The score of "
            f"selected is that of the federation's default there: {default}."
        )
    if by_means:
        notes.append(f"{_who(by_means)}: chosen by means of folds, as the hospital tells no scores of cases.")
    if kept:
        notes.append(
            f"{_who(kept)} told no scores: only they can choose, by fednnunet select on "
            f"their own disks; until then they have the federation's default, {default}."
        )
    return notes


def _who(hospitals: Sequence[str]) -> str:
    return ", ".join(hospitals) if len(hospitals) <= NAMED else f"{len(hospitals)} hospitals"
