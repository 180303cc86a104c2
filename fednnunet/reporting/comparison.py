"""Is a set-up better than the reference? The rows of ``comparisons.csv``, and what papers say of them."""

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
from fednnunet.reporting.tables.results_table import MEAN, order_setups

DEFAULT_REFERENCE = "local"
ALL_CENTRES = "all centres"
"""In the column ``node``: the training centres together."""

LEVEL = 0.05
COMPARISON_COLUMNS = [
    *("strategy", "reference", "node", "n_cases", "n_pairs"),
    *("difference", "low", "high", "effect_size", "p", "p_holm"),
]


@dataclass(frozen=True)
class Comparison:
    """Set-ups against a reference.

    Attributes:
        reference: the set-up that others are compared with.
        rows: columns of ``comparisons.csv``: a row per set-up and centre, and a row for all training centres.
        external: centres whose cases nobody trained on; they stay out of the row for all.
    """

    reference: str
    rows: pd.DataFrame
    external: Sequence[str]

    @property
    def setups(self) -> list[str]:
        """Those that are compared with the reference."""
        return list(dict.fromkeys(self.rows["strategy"]))

    @property
    def significant(self) -> set[tuple[str, str]]:
        """Set-up and column of the table of results where p is below :data:`LEVEL` after Holm's correction."""
        found = self.rows[self.rows["p_holm"] < LEVEL]
        columns = found["node"].replace(ALL_CENTRES, MEAN)
        return set(zip(found["strategy"], columns, strict=True))

    def sentences(self) -> list[str]:
        """A sentence per set-up in the paper's form: difference in points of DSC, and p before Holm's correction."""
        sentences = []
        for setup in self.setups:
            rows = self.rows[self.rows["strategy"] == setup].dropna(subset=["difference"])
            found = [
                f"{self._title(row.node)} {show_points(row.difference)} % ({_p_is(row.p, row.node)})"
                for row in rows.itertuples()
            ]
            sentences.append(f"{setup} over {self.reference}: {', '.join(found) or 'no case in common'}.")
        return sentences

    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Centre to set-up to mean difference in points of DSC, where there is one."""
        found: dict[str, dict[str, Interval]] = {}
        for row in self.rows.dropna(subset=["difference"]).itertuples():
            points = Interval(*(100 * value for value in (row.difference, row.low, row.high)))
            found.setdefault(self._title(row.node), {})[row.strategy] = points
        return found

    def _title(self, node: str) -> str:
        return f"{node} (external)" if node in self.external else node


def show_points(difference: float) -> str:
    """A difference of DSC in points (hundredths) as text, with its sign; a dash where there is none."""
    return "–" if np.isnan(difference) else f"{100 * difference:+.1f}".replace("-", "−")


def _p_is(p_value: float, node: str) -> str:
    shown = show_p_value(p_value)
    method = "Fisher’s method: " if node == ALL_CENTRES else ""
    return f"{method}p {shown}" if shown.startswith("<") else f"{method}p = {shown}"


def choose_reference(setups: Sequence[str], wanted: str | None) -> str | None:
    """The set-up that others are compared with.

    A name stands for the one set-up of that strategy, too: ``local`` for ``local gpu_memory=mixed``.

    Args:
        setups: that were scored.
        wanted: what the user named, or None for ``local``.

    Returns:
        None where nothing was named and there is no ``local``.

    Raises:
        ConfigError: the name is no set-up's, or several's; lists them.
    """
    name = wanted or DEFAULT_REFERENCE
    if name in setups:
        return name
    of_strategy = [setup for setup in setups if setup.split(" ")[0] == name]
    if len(of_strategy) == 1:
        return of_strategy[0]
    if wanted is None:
        return None
    problem = "several set-ups are called so" if of_strategy else "no set-up with scores is called so"
    raise ConfigError(f"reference {name}: {problem}; choose one of: {', '.join(setups)}")


def compare_setups(
    scores: pd.DataFrame, reference: str, training: Sequence[str], external: Sequence[str]
) -> Comparison:
    """Compare the DSC of every set-up with the reference's, case by case.

    A case counts where both have scored it, in the same fold and of the same seed; its difference is averaged over
    seeds for the mean and the bootstrap, which draws cases.

    Args:
        scores: one row per case, as
            :func:`~fednnunet.reporting.tables.results_table.case_means` gives them, with columns ``seed`` and ``fold``.
        reference: name of a set-up.
        training: centres; the row for all is the mean of their means, by Fisher's method, and has no value where one
            of them has no case in common.
        external: centres, tested alike, apart from the row for all.
    """
    setups = [name for name in order_setups(scores["strategy"]) if name != reference]
    rows = []
    for setup in setups:
        differences = paired_differences(scores, setup, reference)
        pairs = {centre: select_centre(differences, centre) for centre in (*training, *external)}
        effects = {centre: rank_biserial(found) for centre, found in pairs.items()}
        p_values = {centre: wilcoxon(found) for centre, found in pairs.items()}
        of_setup = [_row(centre, [pairs[centre]], effects[centre], p_values[centre]) for centre in pairs]
        if len(training) > 1:
            effect = float(np.mean([effects[centre] for centre in training]))
            p_value = fisher([p_values[centre] for centre in training])
            together = _row(ALL_CENTRES, [pairs[centre] for centre in training], effect, p_value)
            of_setup.insert(len(training), together)
        rows += [{"strategy": setup, "reference": reference, **row} for row in of_setup]
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
