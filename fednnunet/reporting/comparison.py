"""Tests whether a strategy is better than a reference: rows of ``comparisons.csv``, and sentences for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fednnunet.errors import ConfigError
from fednnunet.evaluation.statistics import (
    Interval,
    bootstrap,
    fisher,
    holm,
    paired_differences,
    rank_biserial,
    select_centre,
    show_p_value,
    wilcoxon,
)
from fednnunet.listing import MOST_NODES
from fednnunet.reporting.tables.results_table import MEAN, order_strategies

DEFAULT_REFERENCE = "local"
ALL_CENTRES = "all centres"
"""Value of the column ``node`` for the training centres together."""

LEVEL = 0.05
COMPARISON_COLUMNS = [
    *("strategy", "reference", "node", "n_cases", "n_pairs"),
    *("difference", "low", "high", "effect_size", "p", "p_holm"),
]


@dataclass(frozen=True)
class Comparison:
    """Strategies compared with a reference.

    Attributes:
        reference: strategy that the others are compared with.
        rows: table ``comparisons.csv``: one row per strategy and centre, and one for all training centres.
        external: centres without training cases; the row for all leaves them out.
    """

    reference: str
    rows: pd.DataFrame
    external: Sequence[str]

    @property
    def strategies(self) -> list[str]:
        """Strategies that are compared with the reference."""
        return list(dict.fromkeys(self.rows["strategy"]))

    @property
    def significant(self) -> set[tuple[str, str]]:
        """Strategies and columns of the results table where p is below :data:`LEVEL` after Holm's correction."""
        found = self.rows[self.rows["p_holm"] < LEVEL]
        columns = found["node"].replace(ALL_CENTRES, MEAN)
        return set(zip(found["strategy"], columns, strict=True))

    def sentences(self) -> list[str]:
        """One sentence per strategy in the paper's form: difference in points of DSC, p before Holm's correction."""
        sentences = []
        for strategy in self.strategies:
            rows = self.rows[self.rows["strategy"] == strategy].dropna(subset=["difference"])
            if rows["node"].nunique() > MOST_NODES:
                sentences.append(f"{strategy} over {self.reference}: {self._spread(rows)}.")
                continue
            found = [
                f"{self.title_of(row.node)} {show_points(row.difference)} % ({_p_is(row.p, row.node)})"
                for row in rows.itertuples()
            ]
            sentences.append(f"{strategy} over {self.reference}: {', '.join(found) or 'no case in common'}.")
        return sentences

    def _spread(self, rows: pd.DataFrame) -> str:
        """What a sentence says of the rows of a strategy and many nodes."""
        of_all = rows[rows["node"] == ALL_CENTRES]
        parts = [f"{ALL_CENTRES} {show_points(r.difference)} % ({_p_is(r.p, r.node)})" for r in of_all.itertuples()]
        outside = rows["node"].isin(self.external)
        for kind, chosen in (("training", ~outside & (rows["node"] != ALL_CENTRES)), ("external", outside)):
            of_kind = rows[chosen].sort_values("difference")
            if of_kind.empty:
                continue
            low, high = of_kind.iloc[0], of_kind.iloc[-1]
            parts.append(
                f"{(of_kind['difference'] > 0).sum()} of {len(of_kind)} {kind} nodes gain, from "
                f"{show_points(low['difference'])} % ({low['node']}) to {show_points(high['difference'])} % "
                f"({high['node']}), {(of_kind['p_holm'] < LEVEL).sum()} of them differ by Holm’s correction"
            )
        return "; ".join(parts)

    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Centre to strategy to mean difference in points of DSC, where it is defined."""
        found: dict[str, dict[str, Interval]] = {}
        for row in self.rows.dropna(subset=["difference"]).itertuples():
            points = Interval(*(100 * value for value in (row.difference, row.low, row.high)))
            found.setdefault(self.title_of(row.node), {})[row.strategy] = points
        return found

    def title_of(self, node: str) -> str:
        """Name of a centre in figures and sentences."""
        return f"{node} (external)" if node in self.external else node


def show_points(difference: float) -> str:
    """A difference of DSC in points (hundredths) as text, with its sign; a dash if undefined."""
    return "–" if np.isnan(difference) else f"{100 * difference:+.1f}".replace("-", "−")


def _p_is(p_value: float, node: str) -> str:
    shown = show_p_value(p_value)
    method = "Fisher’s method: " if node == ALL_CENTRES else ""
    return f"{method}p {shown}" if shown.startswith("<") else f"{method}p = {shown}"


def choose_reference(strategies: Sequence[str], requested: str | None) -> str | None:
    """The strategy that others are compared with.

    The plain name serves where it is unambiguous: ``local`` for ``local gpu_memory=mixed``.

    Args:
        strategies: strategies that were scored.
        requested: name given by the user, or None for ``local``.

    Returns:
        None if no name was given and there is no ``local``.

    Raises:
        ConfigError: the name fits no strategy, or several; lists them.
    """
    name = requested or DEFAULT_REFERENCE
    if name in strategies:
        return name
    variants = [strategy for strategy in strategies if strategy.split(" ")[0] == name]
    if len(variants) == 1:
        return variants[0]
    if requested is None:
        return None
    problem = "several strategies have this name" if variants else "no strategy with scores has this name"
    raise ConfigError(f"reference {name}: {problem}; choose one of: {', '.join(strategies)}")


def compare_strategies(
    scores: pd.DataFrame, reference: str, training: Sequence[str], external: Sequence[str]
) -> Comparison:
    """Compare the DSC of every strategy with the reference's, case by case.

    A case counts if both scored it in the same fold and with the same seed; for the mean and the bootstrap, which draws
    cases, its difference is averaged over seeds.

    Args:
        scores: one row per case, as
            :func:`~fednnunet.reporting.tables.results_table.case_means` gives them, with columns ``seed`` and ``fold``.
        reference: name of the reference strategy.
        training: training centres; the row for all is the mean of their means with Fisher's method, and is undefined
            if one of them has no case in common.
        external: external centres, tested in the same way, but not part of the row for all.
    """
    strategies = [name for name in order_strategies(scores["strategy"]) if name != reference]
    rows = []
    for strategy in strategies:
        differences = paired_differences(scores, strategy, reference)
        pairs = {centre: select_centre(differences, centre) for centre in (*training, *external)}
        effects = {centre: rank_biserial(found) for centre, found in pairs.items()}
        p_values = {centre: wilcoxon(found) for centre, found in pairs.items()}
        of_strategy = [_row(centre, [pairs[centre]], effects[centre], p_values[centre]) for centre in pairs]
        if len(training) > 1:
            effect = float(np.mean([effects[centre] for centre in training]))
            p_value = fisher([p_values[centre] for centre in training])
            together = _row(ALL_CENTRES, [pairs[centre] for centre in training], effect, p_value)
            of_strategy.insert(len(training), together)
        rows += [{"strategy": strategy, "reference": reference, **row} for row in of_strategy]
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    for _, tests in table.groupby("node"):
        adjusted = holm(dict(zip(tests["strategy"], tests["p"], strict=True)))
        table.loc[tests.index, "p_holm"] = tests["strategy"].map(adjusted)
    return Comparison(reference, table, list(external))


def _row(node: str, pairs: Sequence[pd.Series], effect_size: float, p_value: float) -> dict[str, float | str]:
    of_cases = [found.groupby("case").mean() for found in pairs]
    interval = bootstrap(of_cases)
    return {
        "node": node,
        "n_cases": sum(map(len, of_cases)),
        "n_pairs": sum(map(len, pairs)),
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "effect_size": effect_size,
        "p": p_value,
    }
