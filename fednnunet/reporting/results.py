"""Everything that a report shows, collected once: merged tables, means, comparisons, what is missing."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from fednnunet.errors import ConfigError
from fednnunet.evaluation.statistics import Interval, bootstrap
from fednnunet.exchange.messages import MIN_CASES
from fednnunet.listing import MOST_NODES, join_nodes
from fednnunet.reporting.comparison import LEVEL, Comparison, choose_reference, compare_strategies
from fednnunet.reporting.completeness import (
    check_comparable,
    missing_folds,
    repeated_folds,
    unscored_folds,
    without_foreground,
)
from fednnunet.reporting.gains import Gains, collect_gains
from fednnunet.reporting.paper_comparison import PaperComparison, compare_with_paper
from fednnunet.reporting.run_folder import Run, merge, merge_rounds, node_order
from fednnunet.reporting.scores import Scores, collect_scores, join_means, split_means, with_seed
from fednnunet.reporting.tables.label_table import LabelTable, label_table
from fednnunet.reporting.tables.results_table import (
    DAGGER,
    KEPT,
    MEAN,
    STAR,
    External,
    ResultsTable,
    order_strategies,
    summarise,
)

EXTERNAL_MEANINGS: dict[External, str] = {
    "mean": "the mean over the models of all nodes",
    "best": "the model of the node with the best mean DSC over its own held-out cases",
    "ensemble": "the ensemble of the models of all nodes",
}
MISSING_EXTERNAL: dict[External, str] = {
    "mean": "no run has scores of a node's model at an external node; choose ensemble",
    "best": "no node scored held-out cases of its own; choose mean or ensemble",
    "ensemble": "no run has scores of an ensemble; choose mean or best",
}


@dataclass(frozen=True)
class Results:
    """Results of one or several runs.

    Attributes:
        runs: runs in the order of strategies and seeds.
        training: nodes with training cases.
        external: nodes without training cases.
        rounds: ``rounds.csv`` of all runs.
        cases: rows of cases in ``cases.csv`` of all runs.
        means: its rows of means, and of scores that stay at their nodes.
        scores: one row per case, with columns ``fold`` and ``seed``.
        summary: rows of ``summary.csv``.
        table: results table; None if nothing was scored.
        comparison: comparison with the reference; None if there is none.
        external_scores: models that count at external nodes.
        labels: scores label by label, where nodes have annotated different structures.
        gains: differences to training alone; None where it was not run, or nothing else was.
    """

    runs: list[Run]
    training: list[str]
    external: list[str]
    rounds: pd.DataFrame
    cases: pd.DataFrame
    means: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    table: ResultsTable | None
    comparison: Comparison | None
    external_scores: External
    labels: LabelTable | None = None
    gains: Gains | None = None

    @property
    def has_many_nodes(self) -> bool:
        """Whether nodes are more than are shown one by one."""
        return len(self.training) + len(self.external) > MOST_NODES

    @property
    def problems(self) -> list[str]:
        """Notes about runs that lack something or repeat a fold."""
        return [*(run.problem for run in self.runs if run.problem), *repeated_folds(self.runs)]

    @cached_property
    def compare_with_paper(self) -> PaperComparison | None:
        """The table compared with the paper's, if it has one for the dataset."""
        return None if self.table is None else compare_with_paper(self.table, self.runs)


def collect_results(runs: Sequence[Run], reference: str | None = None, external_scores: External = "mean") -> Results:
    """Merge the scores of runs.

    Args:
        runs: runs of one dataset.
        reference: strategy that the others are compared with; None for ``local``, if there is one.
        external_scores: models that count at external nodes (see
            :func:`~fednnunet.reporting.tables.results_table.own_scores`).

    Raises:
        DataError: the runs cannot be compared in one table.
        ConfigError: there is no such reference, or no such model was scored at external nodes.
    """
    check_comparable(runs)
    strategies = order_strategies(run.strategy for run in runs)
    ordered = sorted(runs, key=lambda run: (strategies.index(run.strategy), run.seed))
    training, external = node_order(ordered)
    cases, means = split_means(merge([join_means(run.cases, run.means) for run in ordered]))
    rounds = merge_rounds([run.rounds for run in ordered])
    collected = collect_scores(cases, means, external_scores)
    counted = {*collected.cases["node"], *collected.means["node"]}
    if {*cases["node"], *means["node"]} & {*external} and not counted & {*external}:
        raise ConfigError(f"external {external_scores}: {MISSING_EXTERNAL[external_scores]}")
    unit = next((run.info["distance_unit"] for run in ordered if "distance_unit" in run.info), "mm")
    table = collected.table(training, external, unit)
    if table is None:
        return Results(
            ordered, training, external, rounds, cases, means, cases, summarise(cases), None, None, external_scores
        )
    scores = with_seed(collected, ordered[0].seed).cases
    with_cases = order_strategies(scores["strategy"])
    chosen = choose_reference(with_cases, reference) if with_cases else None
    comparison = compare_strategies(scores, chosen, training, external) if chosen and len(with_cases) > 1 else None
    labels = label_table(cases, means, table, external_scores)
    missing = {strategy: folds for strategy, folds in missing_folds(ordered).items() if strategy in table.strategies}
    table = replace(
        table,
        intervals=_intervals(scores, table, {*collected.told.index}),
        significant=comparison.significant if comparison else set(),
        incomplete=set(missing),
        notes=[
            *_notes(table, comparison, missing, unscored_folds(ordered), external_scores),
            *_notes_on_limits(collected, table),
            *_notes_on_foreground(without_foreground(cases)),
            *([] if labels is None else [labels.note]),
        ],
    )
    return Results(
        ordered,
        training,
        external,
        rounds,
        cases,
        means,
        scores,
        collected.summary,
        table,
        comparison,
        external_scores,
        labels,
        collect_gains(with_seed(collected, ordered[0].seed), training, comparison),
    )


def _intervals(
    scores: pd.DataFrame, table: ResultsTable, told: Set[tuple[str, str]]
) -> dict[tuple[str, str, str], Interval]:
    """Intervals of means over cases: a case counts once, with its mean over seeds; ``mean`` is over centres' means.

    Strategies and nodes in ``told`` have none: their cases are not known, or not all.
    """
    found = {}
    if told:
        scores = scores[~pd.MultiIndex.from_frame(scores[["strategy", "node"]]).isin(list(told))]
    for metric in table.metrics:
        of_cases = scores.dropna(subset=[metric.column]).groupby(["strategy", "node", "case"])[metric.column].mean()
        values = {key: of_centre.to_numpy() for key, of_centre in of_cases.groupby(level=["strategy", "node"])}
        for strategy in table.strategies:
            for column in table.columns:
                centres = table.training if column == MEAN else [column]
                samples = [values.get((strategy, centre), []) for centre in centres]
                found[metric.column, strategy, column] = bootstrap(samples)
    return found


def _notes_on_foreground(centres: Sequence[str]) -> list[str]:
    named = [join_nodes(centres)] if len(centres) > MOST_NODES else centres
    return [
        f"No scored case of {who} holds foreground: its DSC is 1 where nothing was segmented, else 0." for who in named
    ]


def _notes_on_limits(scores: Scores, table: ResultsTable) -> list[str]:
    """What the table cannot show, as nodes do not tell it."""
    notes = []
    order = [*table.training, *table.external]
    told = sorted({node for _, node in scores.told.index}, key=order.index)
    if told:
        notes.append(
            f"{join_nodes(told)}: means that the node has computed over its cases, whose own scores it does not tell "
            "(privacy.scores); so there is no interval, no test and no distribution."
        )
    folds: dict[str, set[str]] = {}
    for (_, node), of_node in scores.kept.items():
        folds.setdefault(node, set()).update(of_node)
    if folds:
        nodes = sorted(folds, key=order.index)
        if len(nodes) > MOST_NODES:
            listed = join_nodes(nodes)
        else:
            listed = "; ".join(f"{node}, fold {', '.join(sorted(folds[node]))}" for node in nodes)
        notes.append(
            f"{KEPT}: scores that stay at the node ({listed}), by privacy.scores=nothing, or because a mean is over at "
            f"least {MIN_CASES} cases, if need be of several folds. The node's own folder holds them."
        )
    return notes


def _notes(
    table: ResultsTable,
    comparison: Comparison | None,
    missing: dict[str, str],
    unscored: dict[str, str],
    external_scores: External,
) -> list[str]:
    notes = []
    if comparison is not None:
        notes.append(
            f"{STAR} p < {LEVEL} against {comparison.reference}: two-tailed Wilcoxon signed-rank test on the DSC of "
            "cases; “mean”: Fisher’s method over training nodes; Holm’s correction over strategies."
        )
    if missing:
        lacking = "; ".join(f"{strategy} lacks {what}" for strategy, what in missing.items())
        notes.append(
            f"{DAGGER} {lacking}. Means of different folds are not of the same cases: compare them with care"
            + ("; tests use only cases that both strategies scored." if comparison else ".")
        )
    if len(unscored) > MOST_NODES:
        notes.append(
            f"{len(unscored)} nodes have fewer cases than folds, and are not scored in each: {join_nodes([*unscored])}."
        )
    else:
        notes += [
            f"{centre} holds no case out in {folds}: it has fewer cases than folds, and is not scored there."
            for centre, folds in unscored.items()
        ]
    if table.external:
        notes.append(f"External nodes: {EXTERNAL_MEANINGS[external_scores]}.")
    return notes
