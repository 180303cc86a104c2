"""Are three claims of the paper borne out by a finished comparison of its four set-ups? Table and figure.

    python experiments/phantom/claims.py outputs/phantom-experiment

1. Federated training beats training alone. 2. FFE is close to pooling the images. 3. The smallest centre gains most.
Each is a difference in DSC between two set-ups on the same held-out cases.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from fednnunet.errors import DataError, FednnUNetError
from fednnunet.evaluation.statistics import Interval, fisher, wilcoxon_by_centre
from fednnunet.files import write_atomically
from fednnunet.reporting.figures import forest, save_figure
from fednnunet.reporting.paper import paper_tables
from fednnunet.reporting.run_folder import node_order, read_runs
from fednnunet.reporting.sweep import find_runs
from fednnunet.reporting.tables import SETUP_ORDER, case_means

FEDERATED = ("asym", "ffe")
RESAMPLES = 9999
NOTE = (
    "Intervals: 95 %, BCa bootstrap over cases, drawn within each centre: how cases differ, not how trainings "
    "with other seeds would. p: the paper's test, Wilcoxon's of each centre, combined by Fisher. Close: within "
    "±{margin:.3f}, the largest difference between FFE and centralized in the paper's tables."
)

Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Study:
    """What a finished comparison measured.

    Attributes:
        scores: one row a set-up and case: columns ``strategy``, ``node``, ``case``, ``dsc`` and, all the same, ``fold``
            and ``seed``.
        dsc: rows are cases (index ``node``, ``case``), columns set-ups.
        sizes: training centre to number of its training cases.
        external: centres without.
    """

    scores: pd.DataFrame
    dsc: pd.DataFrame
    sizes: dict[str, int]
    external: list[str]

    def gains(self, setup: str, reference: str, centre: str) -> np.ndarray:
        """DSC of ``setup`` less that of ``reference``, a value a case of ``centre``."""
        of_centre = self.dsc.loc[centre]
        return (of_centre[setup] - of_centre[reference]).dropna().to_numpy()

    @property
    def smallest(self) -> str:
        """The centre with fewest training cases."""
        return min(self.sizes, key=lambda centre: self.sizes[centre])


def read_study(folder: Path) -> Study:
    """Read the finished runs of a sweep; a case counts once, with its mean over seeds (of an external one, over folds).

    Raises:
        DataError: a set-up has no finished run; names it.
    """
    runs = [run for run in read_runs(find_runs([folder])) if run.finished]
    missing = [setup for setup in SETUP_ORDER if setup not in {run.setup for run in runs}]
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} did not finish; the same command goes on")
    every = case_means(pd.concat([run.cases for run in runs], ignore_index=True))
    scores = every.groupby(["strategy", "node", "case"], as_index=False)["dsc"].mean().assign(fold=0, seed=0)
    training, external = node_order(runs)
    counts = {node: number for run in runs for node, number in run.info["num_training"].items()}
    dsc = scores.pivot(index=["node", "case"], columns="strategy", values="dsc")
    return Study(scores, dsc, {node: counts[node] for node in training}, external)


def mean_of_centres(*centres: np.ndarray, axis: int = -1) -> np.ndarray:
    """Every centre counts the same, as in the table's mean."""
    return np.mean([centre.mean(axis) for centre in centres], axis=0)


def mean_of_cases(*centres: np.ndarray, axis: int = -1) -> np.ndarray:
    """Every case counts the same."""
    return np.concatenate(centres, axis=axis).mean(axis)


def first_less_others(*centres: np.ndarray, axis: int = -1) -> np.ndarray:
    """The first centre's mean less the mean of the other centres' means."""
    return centres[0].mean(axis) - mean_of_centres(*centres[1:], axis=axis)


def bootstrap(statistic: Statistic, centres: Sequence[np.ndarray]) -> Interval:
    """Value and 95 % interval over cases drawn anew within each centre (``scipy.stats.bootstrap``, BCa)."""
    rng = np.random.default_rng(0)
    result = stats.bootstrap(centres, statistic, n_resamples=RESAMPLES, vectorized=True, batch=500, rng=rng)
    low, high = result.confidence_interval
    return Interval(float(statistic(*centres)), float(low), float(high))


def claims(study: Study, margin: float) -> pd.DataFrame:
    """One row a claim: what it says, the difference, its interval, and what to make of it."""
    own = study.scores[study.scores["node"].isin(study.sizes)]
    rows = []
    for setup, reference in (*((setup, "local") for setup in FEDERATED), ("ffe", "centralized")):
        gains = [study.gains(setup, reference, centre) for centre in study.sizes]
        difference = bootstrap(mean_of_centres, gains)
        rows.append(
            {
                "claim": f"{setup} better than local" if reference == "local" else "ffe close to centralized",
                "difference": f"{setup} − {reference}",
                "centres": difference,
                "cases": bootstrap(mean_of_cases, gains),
                "p": fisher(list(wilcoxon_by_centre(own, setup, reference).values())),
                "verdict": judge_above(difference) if reference == "local" else judge_close(difference, margin),
            }
        )
    others = [centre for centre in study.sizes if centre != study.smallest]
    for setup in FEDERATED:
        gains = [study.gains(setup, "local", centre) for centre in (study.smallest, *others)]
        lead = bootstrap(first_less_others, gains)
        most = [study.smallest, *others][int(np.argmax([gain.mean() for gain in gains]))]
        rows.append(
            {
                "claim": f"{study.smallest}, the smallest centre, gains most by {setup}",
                "difference": f"its gain − mean gain of the others ({setup} − local)",
                "centres": lead,
                "cases": None,
                "p": None,
                "verdict": judge_above(lead) if most == study.smallest else f"not borne out: {most} gains most",
            }
        )
    return pd.DataFrame(rows)


def judge_above(interval: Interval) -> str:
    """What to make of a difference that should be positive."""
    if interval.low > 0:
        return "borne out"
    return "contradicted" if interval.high < 0 else "open: the interval holds 0"


def judge_close(interval: Interval, margin: float) -> str:
    """What to make of a difference that should lie within ``margin`` of none."""
    if -margin <= interval.low and interval.high <= margin:
        return "borne out"
    if interval.low > margin:
        return "not borne out: better than close"
    if interval.high < -margin:
        return "not borne out: worse than close"
    return "open: the interval is not within the margin"


def centre_gains(study: Study) -> pd.DataFrame:
    """Gain of every centre by federated training, smallest training centre first, external centres last."""
    order = [*sorted(study.sizes, key=lambda centre: study.sizes[centre]), *study.external]
    return pd.DataFrame(
        [
            {
                "centre": centre,
                "training": study.sizes.get(centre, 0),
                "held_out": len(study.dsc.loc[centre]),
                **{setup: bootstrap(mean_of_cases, [study.gains(setup, "local", centre)]) for setup in FEDERATED},
            }
            for centre in order
        ]
    )


def as_markdown(judged: pd.DataFrame, gains: pd.DataFrame, margin: float) -> str:
    """Both tables and how to read them."""
    lines = [
        "| claim | difference in DSC | mean over centres | mean over cases | p | |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        *(
            f"| {row.claim} | {row.difference} | {_show(row.centres)} | {_show(row.cases) if row.cases else '–'} | "
            f"{f'{row.p:.2g}' if row.p == row.p else '–'} | {row.verdict} |"
            for row in judged.itertuples()
        ),
        "",
        f"| centre | training cases | held-out cases | {' | '.join(f'{setup} − local' for setup in FEDERATED)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(FEDERATED),
        *(
            f"| {row['centre']} | {row['training'] or 'external'} | {row['held_out']} | "
            f"{' | '.join(_show(row[setup]) for setup in FEDERATED)} |"
            for row in gains.to_dict("records")
        ),
        "",
        NOTE.format(margin=margin),
    ]
    return "\n".join(lines) + "\n"


def _show(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]".replace("-", "−")


def margin_of_the_paper() -> float:
    """Largest difference in DSC between FFE and centralized at any centre of the paper's tables."""
    tables = [table.values["dsc"] for table in paper_tables().values()]
    return max(float((dsc.loc["ffe"] - dsc.loc["centralized"]).abs().max()) for dsc in tables)


def write_claims(folder: Path) -> str:
    """Write ``claims.md`` and the figure ``gains`` (PNG, SVG) into the sweep's folder; returns the text.

    Raises:
        DataError: the sweep is not finished.
    """
    study, margin = read_study(folder), margin_of_the_paper()
    gains = centre_gains(study)
    text = as_markdown(claims(study, margin), gains, margin)
    write_atomically(folder / "claims.md", text)
    intervals, values = {"local": Interval(0.0, 0.0, 0.0)}, {"local": [0.0]}
    for row in gains.to_dict("records"):
        for setup in FEDERATED:
            name = f"{setup} {row['centre']} ({row['training'] or 'external'})"
            intervals[name] = row[setup]
            values[name] = study.gains(setup, "local", row["centre"]).tolist()
    title = "DSC less that of local on the same case; in brackets training cases"
    save_figure(forest(intervals, values, reference="local", title=title), folder, "gains")
    return text


if __name__ == "__main__":
    try:
        for argument in sys.argv[1:]:
            print(write_claims(Path(argument)))
    except FednnUNetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
