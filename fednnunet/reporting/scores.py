"""Scores of runs: of cases, and means that nodes tell in place of them, which have no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fednnunet.reporting.tables.results_table import (
    SCORES,
    SUMMARY_COLUMNS,
    External,
    ResultsTable,
    fold_means,
    means_over_labels,
    own_scores,
    results_table,
)
from fednnunet.run_files import NUM_CASES_COLUMN

NO_CASE = -1
"""Stands for the number of a case in a row of means."""


@dataclass(frozen=True)
class Scores:
    """Scores that a results table counts.

    Attributes:
        cases: one row per case (:func:`~fednnunet.reporting.tables.results_table.case_means`).
        means: one row per strategy, node and fold (and seed) of which its node tells means or, with ``n_cases`` 0,
            nothing; columns of ``summary.csv``.
    """

    cases: pd.DataFrame
    means: pd.DataFrame

    @property
    def summary(self) -> pd.DataFrame:
        """Rows of ``summary.csv``: means over cases, then those that nodes tell."""
        if self.means.empty:
            return fold_means(self.cases)
        if self.cases.empty:
            return self.means
        rows = pd.concat([fold_means(self.cases), self.means], ignore_index=True)
        return rows.astype({"n_empty": "Int64"})

    @property
    def told(self) -> pd.DataFrame:
        """Strategy and node (index) to means over all folds, for nodes that tell means of one.

        A fold counts by its cases; seeds count the same.
        """
        keys = self.means[self.means["n_cases"] > 0][["strategy", "node"]].drop_duplicates()
        rows = self.summary.merge(keys, on=["strategy", "node"])
        by = [key for key in ("strategy", "node", "seed") if key in rows]
        found = {key: _weighted_means(of_seed) for key, of_seed in rows.groupby(by, sort=False)}
        if not found:
            return pd.DataFrame(columns=SCORES)
        frame = pd.DataFrame(found.values(), index=pd.MultiIndex.from_tuples(found, names=by))
        return frame.groupby(level=["strategy", "node"]).mean()

    @property
    def kept(self) -> dict[tuple[str, str], list[str]]:
        """Strategy and node to the folds whose scores stay at the node."""
        rows = self.means[self.means["n_cases"] == 0]
        return {key: sorted(set(of_node["fold"])) for key, of_node in rows.groupby(["strategy", "node"], sort=False)}

    def table(self, training: Sequence[str], external: Sequence[str], distance_unit: str = "mm") -> ResultsTable | None:
        """The results table; None if there is nothing to show in it."""
        if self.cases.empty and self.means.empty:
            return None
        return results_table(self.cases, training, external, distance_unit, self.told, set(self.kept))


def with_seed(scores: Scores, seed: int) -> Scores:
    """The scores with a column ``seed``, which those of one seed lack."""
    cases, means = (rows if "seed" in rows else rows.assign(seed=seed) for rows in (scores.cases, scores.means))
    return Scores(cases, means)


def split_means(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of ``cases.csv``: those of cases, and those of means or of scores that are kept."""
    if NUM_CASES_COLUMN not in rows:
        return rows, rows.iloc[:0].assign(**{NUM_CASES_COLUMN: 0})
    counts = pd.to_numeric(rows[NUM_CASES_COLUMN])
    is_mean = counts.notna()
    cases = rows[~is_mean].drop(columns=NUM_CASES_COLUMN).astype({"case": int})
    return cases, rows[is_mean].assign(**{NUM_CASES_COLUMN: counts[is_mean].astype(int)})


def over_labels(means: pd.DataFrame) -> pd.DataFrame:
    """Rows of means that are over labels, too."""
    return means[(means["label"] == "") & (means["n_cases"] > 0)]


def join_means(cases: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """The rows that :func:`split_means` has split."""
    return _concat([cases.astype({"case": "Int64"}), means]) if len(means) else cases


def collect_scores(cases: pd.DataFrame, means: pd.DataFrame, external: External = "mean") -> Scores:
    """What counts in a results table.

    Args:
        cases: rows of cases, of :func:`split_means`.
        means: rows of means, of the same.
        external: models that count at external centres, as in
            :func:`~fednnunet.reporting.tables.results_table.own_scores`.
    """
    keys = [key for key in ("strategy", "node", "fold", "seed") if key in cases.columns]
    columns = [*SUMMARY_COLUMNS, *(["seed"] if "seed" in keys else [])]
    scored = _concat([cases, over_labels(means).assign(case=NO_CASE)])
    chosen = own_scores(scored, external) if len(scored) else scored
    of_cases, of_nodes = chosen[chosen["case"] != NO_CASE], chosen[chosen["case"] == NO_CASE]
    over_models = {"n_cases": "first", **dict.fromkeys(SCORES, "mean")}
    told = of_nodes.groupby(keys, sort=False, as_index=False).agg(over_models) if len(of_nodes) else of_nodes
    kept = means[means["n_cases"] == 0].drop_duplicates(keys)
    return Scores(
        means_over_labels(of_cases) if len(of_cases) else pd.DataFrame(columns=[*keys, "case", *SCORES, "n_empty"]),
        _concat([told, kept]).reindex(columns=columns),
    )


def _concat(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows in one table; the first table where there are none."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if len(filled) > 1 else (filled or frames)[0]


def _weighted_means(rows: pd.DataFrame) -> dict[str, float]:
    """Means of a node's folds, weighted by their cases; folds in which a score is undefined are left out."""
    weights = rows["n_cases"].to_numpy(float)
    means = {}
    for score in SCORES:
        values = rows[score].to_numpy(float)
        defined = np.isfinite(values) & (weights > 0)
        means[score] = float(np.average(values[defined], weights=weights[defined])) if defined.any() else np.nan
    return means
