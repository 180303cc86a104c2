"""Who gains over training alone, and who does not: every strategy, and what each hospital would select."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fednnunet.errors import DataError
from fednnunet.evaluation.choice import Selection
from fednnunet.evaluation.statistics import Interval, bootstrap
from fednnunet.exchange.messages import MIN_CASES
from fednnunet.listing import MOST_NODES, join_all, join_first
from fednnunet.reporting import figures
from fednnunet.reporting.comparison import Comparison, choose_reference, compare_strategies
from fednnunet.reporting.figures.style import INK
from fednnunet.reporting.scores import Scores
from fednnunet.reporting.selected import SELECTED, Selections, order_candidates, select_by_scores

GAINS, LOSES, SAME, UNKNOWN = "gains", "loses", "no difference seen", "no interval"
UNSCORED = "–"
COUNTED = {
    GAINS: "gain",
    LOSES: "lose",
    SAME: "show no difference",
    UNKNOWN: "have no interval",
    UNSCORED: "cannot be compared",
}
"""What is said of several hospitals."""
NAMED = 5
"""Most hospitals that a sentence names of those of one kind; of many in the run, it names only who loses."""


@dataclass(frozen=True)
class Gains:
    """Differences in DSC to training alone.

    Attributes:
        alone: strategy that the others are compared with.
        columns: strategies from simple to complex, then what hospitals select.
        nodes: training hospitals.
        differences: hospital and column to difference and its 95 % interval, where both have scores.
        selections: what hospitals select; None where that cannot be said.
        notes: what a reader must know, a sentence each.
    """

    alone: str
    columns: Sequence[str]
    nodes: Sequence[str]
    differences: Mapping[tuple[str, str], Interval]
    selections: Selections | None
    notes: Sequence[str]

    def verdict(self, node: str, column: str) -> str:
        """Whether a hospital gains, loses, or neither can be said."""
        interval = self.differences.get((node, column))
        return UNSCORED if interval is None else judge(interval)

    def choices(self, node: str) -> str:
        """What a hospital would select: by all folds, and by all but one where that differs."""
        seeds = {} if self.selections is None else self.selections.of_node.get(node, {})
        return "; ".join(
            show_choices(selection) if len(seeds) == 1 else f"seed {seed}: {show_choices(selection)}"
            for seed, selection in seeds.items()
        )

    def sentences(self) -> list[str]:
        """One sentence per column: how many hospitals gain and lose."""
        sentences, many = [], len(self.nodes) > MOST_NODES
        for column in self.columns:
            found: dict[str, list[str]] = {word: [] for word in COUNTED}
            for node in self.nodes:
                found[self.verdict(node, column)].append(node)
            parts = []
            for word, nodes in found.items():
                named = f" ({join_first(nodes, NAMED)})" if nodes and (word == LOSES or not many) else ""
                if nodes or word in (GAINS, LOSES):
                    parts.append(f"{len(nodes)} {COUNTED[word]}{named}")
            of_all = f"{len(self.nodes)} hospital{'s' * (len(self.nodes) != 1)}"
            sentences.append(f"{column}: of {of_all} {join_all(parts)}.")
        return sentences

    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Hospital to column to difference in points of DSC, for figures."""
        return {
            node: {
                column: Interval(*(100 * value for value in (found.mean, found.low, found.high)))
                for column in self.columns
                if (found := self.differences.get((node, column))) is not None
            }
            for node in self.nodes
        }


def judge(interval: Interval) -> str:
    """A difference to training alone in words, by whether its interval holds 0."""
    if np.isnan(interval.low):
        return UNKNOWN
    if interval.low > 0:
        return GAINS
    return LOSES if interval.high < 0 else SAME


def show_choices(selection: Selection) -> str:
    """The final choice, and how often others were made without a fold.

    Such as ``ffe`` or ``ffe (without one fold: ffe 4, local 1)``.
    """
    made = Counter(choice.candidate for choice in selection.choices.values())
    final = selection.final.candidate + (" (default)" if selection.final.reason else "")
    if set(made) == {selection.final.candidate}:
        return final
    return f"{final} (without one fold: {', '.join(f'{name} {number}' for name, number in made.most_common())})"


def gain_of(selections: Sequence[Selection], candidate: str, alone: str) -> Interval:
    """Difference in DSC of a candidate, or of what was selected, to training alone, with its bootstrap interval.

    A case counts once, with its mean over seeds. Means of folds have no interval, nor have fewer than
    :data:`~fednnunet.exchange.messages.MIN_CASES` cases: all of two have the same sign every other time by chance.

    Args:
        selections: of one hospital, one for each seed.
        candidate: a candidate, or :data:`~fednnunet.reporting.selected.SELECTED`.
        alone: the candidate of training alone.
    """
    differences = []
    for selection in selections:
        scores = selection.selected if candidate == SELECTED else selection.of(candidate)
        differences.append((scores - selection.of(alone)).dropna())
    if any((selection.weights != 1).any() for selection in selections):
        of_seeds = [one.mean(difference) for one, difference in zip(selections, differences, strict=True)]
        return Interval(float(np.mean(of_seeds)), np.nan, np.nan)
    of_cases = pd.concat(differences).groupby("case").mean()
    return _if_enough(bootstrap([of_cases]), len(of_cases))


def _if_enough(interval: Interval, num_cases: int) -> Interval:
    return interval if num_cases >= MIN_CASES else Interval(interval.mean, np.nan, np.nan)


def collect_gains(scores: Scores, training: Sequence[str], comparison: Comparison | None) -> Gains | None:
    """Differences of all strategies that leave images at their hospitals, and of what hospitals select.

    Args:
        scores: scores of runs, with a column ``seed``.
        training: training hospitals; an external one has no model of its own.
        comparison: comparison with a reference; its intervals are used where that is training alone.

    Returns:
        None where training alone, or anything to compare with it, was not run.
    """
    candidates = order_candidates([*scores.cases["strategy"], *scores.means["strategy"]])
    alone = choose_reference(candidates, None) if candidates else None
    others = [name for name in candidates if name != alone]
    if alone is None or not others:
        return None
    notes: list[str] = []
    selections = None
    try:
        selections = select_by_scores(scores, training)
        notes += selections.notes
        if not any(one.final.reason == "" for seeds in selections.of_node.values() for one in seeds.values()):
            selections = None  # its scores would be those of the default
    except DataError as error:
        notes.append(f"What hospitals would select is not shown: {error}.")
    differences: dict[tuple[str, str], Interval] = {}
    if len(scores.cases):
        if comparison is None or comparison.reference != alone:
            comparison = compare_strategies(
                scores.cases[scores.cases["strategy"].isin(candidates)], alone, training, []
            )
        for row in comparison.rows.dropna(subset=["difference"]).itertuples():
            if row.node in training and row.strategy in others:
                interval = Interval(row.difference, row.low, row.high)
                differences[row.node, row.strategy] = _if_enough(interval, row.n_cases)
    return _gains(alone, others, training, selections, differences, notes)


def gains_by_selections(selections: Selections, training: Sequence[str]) -> Gains | None:
    """The same of choices that were made before; None where training alone is no candidate.

    Args:
        selections: what hospitals choose.
        training: training hospitals.
    """
    if selections.alone is None:
        return None
    others = [name for name in selections.candidates if name != selections.alone]
    return _gains(selections.alone, others, training, selections, {}, selections.notes)


def _gains(
    alone: str,
    others: Sequence[str],
    training: Sequence[str],
    selections: Selections | None,
    known: Mapping[tuple[str, str], Interval],
    notes: Sequence[str],
) -> Gains:
    differences = dict(known)
    for node, seeds in (selections.of_node if selections else {}).items():
        for column in (*(name for name in others if (node, name) not in known), SELECTED):
            gain = gain_of(list(seeds.values()), column, alone)
            if not np.isnan(gain.mean):
                differences[node, column] = gain
    columns = [*others, *([SELECTED] if selections else [])]
    return Gains(alone, columns, list(training), differences, selections, notes)


def draw_gains(gains: Gains, title: str, many: bool) -> Figure:
    """Differences of every hospital, one below the other; of many hospitals sorted, a panel per strategy."""
    colours = figures.strategy_colours(gains.columns) | {SELECTED: INK}
    if many:
        return figures.sorted_differences(gains.intervals(), "", [], title, colours)
    return figures.forest(gains.intervals(), title, colours, width=5.6)
