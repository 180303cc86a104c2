"""Everything that a report shows, collected once: merged tables, means, comparisons, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from fednnunet.errors import ConfigError
from fednnunet.evaluation.statistics import Interval, bootstrap
from fednnunet.reporting.comparison import LEVEL, Comparison, choose_reference, compare_strategies
from fednnunet.reporting.completeness import (
    check_comparable,
    missing_folds,
    repeated_folds,
    unscored_folds,
    without_foreground,
)
from fednnunet.reporting.paper_comparison import PaperComparison, compare_with_paper
from fednnunet.reporting.run_folder import Run, merge, merge_rounds, node_order
from fednnunet.reporting.tables.results_table import (
    DAGGER,
    MEAN,
    STAR,
    External,
    ResultsTable,
    case_means,
    fold_means,
    order_strategies,
    results_table,
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
        cases: ``cases.csv`` of all runs.
        scores: one row per case, with columns ``fold`` and ``seed``.
        summary: rows of ``summary.csv``.
        table: results table; None if nothing was scored.
        comparison: comparison with the reference; None if there is none.
        external_scores: models that count at external nodes.
    """

    runs: list[Run]
    training: list[str]
    external: list[str]
    rounds: pd.DataFrame
    cases: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    table: ResultsTable | None
    comparison: Comparison | None
    external_scores: External

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
    cases, rounds = merge([run.cases for run in ordered]), merge_rounds([run.rounds for run in ordered])
    if cases.empty:
        return Results(ordered, training, external, rounds, cases, cases, summarise(cases), None, None, external_scores)
    scores = case_means(cases, external_scores)
    is_external = cases["node"].isin(external)
    if is_external.any() and not scores["node"].isin(external).any():
        raise ConfigError(f"external {external_scores}: {MISSING_EXTERNAL[external_scores]}")
    summary = fold_means(scores)
    scores = scores if "seed" in scores else scores.assign(seed=ordered[0].seed)
    scored = order_strategies(scores["strategy"])
    chosen = choose_reference(scored, reference)
    comparison = compare_strategies(scores, chosen, training, external) if chosen and len(scored) > 1 else None
    unit = next((run.info["distance_unit"] for run in ordered if "distance_unit" in run.info), "mm")
    table = results_table(scores, training, external, unit)
    missing = {strategy: folds for strategy, folds in missing_folds(ordered).items() if strategy in scored}
    table = replace(
        table,
        intervals=_intervals(scores, table),
        significant=comparison.significant if comparison else set(),
        incomplete=set(missing),
        notes=[
            *_notes(table, comparison, missing, unscored_folds(ordered), external_scores),
            *(
                f"No scored case of {centre} holds foreground: its DSC is 1 where nothing was segmented, else 0."
                for centre in without_foreground(cases)
            ),
        ],
    )
    return Results(ordered, training, external, rounds, cases, scores, summary, table, comparison, external_scores)


def _intervals(scores: pd.DataFrame, table: ResultsTable) -> dict[tuple[str, str, str], Interval]:
    """Intervals of means over cases: a case counts once, with its mean over seeds; ``mean`` is over centres' means."""
    found = {}
    for metric in table.metrics:
        of_cases = scores.dropna(subset=[metric.column]).groupby(["strategy", "node", "case"])[metric.column].mean()
        values = {key: of_centre.to_numpy() for key, of_centre in of_cases.groupby(level=["strategy", "node"])}
        for strategy in table.strategies:
            for column in table.columns:
                centres = table.training if column == MEAN else [column]
                samples = [values.get((strategy, centre), []) for centre in centres]
                found[metric.column, strategy, column] = bootstrap(samples)
    return found


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
    for centre, folds in unscored.items():
        notes.append(f"{centre} holds no case out in {folds}: it has fewer cases than folds, and is not scored there.")
    if table.external:
        notes.append(f"External nodes: {EXTERNAL_MEANINGS[external_scores]}.")
    return notes
