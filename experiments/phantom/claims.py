"""Check three claims of the paper against a finished comparison of its four strategies: table and figure.

    python experiments/phantom/claims.py outputs/phantom-experiment

1. Federated training beats training alone. 2. FFE is close to pooling the images. 3. The smallest centre gains most.
Each is a difference in DSC between two strategies on the same held-out cases.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fednnunet.errors import DataError, FednnUNetError
from fednnunet.evaluation.statistics import Interval, bootstrap, mean_of_means, show_p_value
from fednnunet.files import write_atomically
from fednnunet.reporting.comparison import ALL_CENTRES, compare_strategies
from fednnunet.reporting.figures import forest, save_figure, strategy_colours
from fednnunet.reporting.finish import find_runs
from fednnunet.reporting.paper_comparison import paper_tables
from fednnunet.reporting.results import Results, collect_results
from fednnunet.reporting.run_folder import read_runs
from fednnunet.reporting.tables.results_table import STRATEGY_ORDER

FEDERATED = ("asym", "ffe")
NOTE = (
    "Intervals: 95 %, bootstrap over cases, drawn within each centre: how cases differ, not how trainings with other "
    "seeds would. p: the paper's test, Wilcoxon's of each centre, combined by Fisher. Close: within ±{margin:.3f}, the "
    "largest difference between FFE and centralized in the paper's tables."
)


@dataclass(frozen=True)
class Experiment:
    """A finished comparison of the four strategies.

    Attributes:
        results: results of its runs.
        sizes: training centre to number of its training cases.
    """

    results: Results
    sizes: dict[str, int]

    @property
    def smallest(self) -> str:
        """The centre with the fewest training cases."""
        return min(self.sizes, key=lambda centre: self.sizes[centre])

    def compare(self, reference: str) -> pd.DataFrame:
        """The rows of ``comparisons.csv`` with another reference, by strategy and centre."""
        results = self.results
        compared = compare_strategies(results.scores, reference, results.training, results.external)
        return compared.rows.set_index(["strategy", "node"])

    def gains(self, strategy: str, centre: str) -> np.ndarray:
        """DSC of ``strategy`` less that of ``local``, one value per case of ``centre``, its mean over seeds."""
        scores = self.results.scores
        dsc = scores[scores["node"] == centre].pivot_table(index="case", columns="strategy", values="dsc")
        return (dsc[strategy] - dsc["local"]).dropna().to_numpy()


def read_experiment(folder: Path) -> Experiment:
    """Read the finished runs of a sweep.

    Raises:
        DataError: a strategy has no finished run; names it.
    """
    runs = [run for run in read_runs(find_runs([folder])) if run.finished]
    missing = [strategy for strategy in STRATEGY_ORDER if strategy not in {run.strategy for run in runs}]
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} did not finish; the same command continues it")
    results = collect_results(runs)
    counts = {node: number for run in runs for node, number in run.info["num_training"].items()}
    return Experiment(results, {node: counts[node] for node in results.training})


def claims(experiment: Experiment, margin: float) -> pd.DataFrame:
    """One row per claim: its text, the difference, its interval, and the verdict."""
    rows = []
    for strategy, reference in (*((strategy, "local") for strategy in FEDERATED), ("ffe", "centralized")):
        compared = experiment.compare(reference).loc[(strategy, ALL_CENTRES)]
        difference = Interval(compared["difference"], compared["low"], compared["high"])
        close = reference == "centralized"
        rows.append(
            {
                "claim": f"{strategy} close to centralized" if close else f"{strategy} better than local",
                "difference": f"{strategy} − {reference}, mean over centres",
                "interval": difference,
                "p": compared["p"],
                "verdict": judge_close(difference, margin) if close else judge_above(difference),
            }
        )
    others = [centre for centre in experiment.sizes if centre != experiment.smallest]
    for strategy in FEDERATED:
        gains = {centre: experiment.gains(strategy, centre) for centre in (experiment.smallest, *others)}
        lead = bootstrap(list(gains.values()), first_less_others)
        most = max(gains, key=lambda centre: gains[centre].mean())
        rows.append(
            {
                "claim": f"{experiment.smallest}, the smallest centre, gains most by {strategy}",
                "difference": f"its {strategy} − local, less the mean of the others'",
                "interval": lead,
                "p": np.nan,
                "verdict": judge_above(lead) if most == experiment.smallest else f"not borne out: {most} gains most",
            }
        )
    return pd.DataFrame(rows)


def first_less_others(*centres: np.ndarray, axis: int = -1) -> np.ndarray:
    """The first centre's mean less the mean of the other centres' means."""
    return centres[0].mean(axis=axis) - mean_of_means(*centres[1:], axis=axis)


def judge_above(interval: Interval) -> str:
    """Verdict on a difference that should be positive."""
    if interval.low > 0:
        return "borne out"
    return "contradicted" if interval.high < 0 else "open: the interval holds 0"


def judge_close(interval: Interval, margin: float) -> str:
    """Verdict on a difference that should lie within ``margin`` of zero."""
    if -margin <= interval.low and interval.high <= margin:
        return "borne out"
    if interval.low > margin:
        return "not borne out: better than close"
    if interval.high < -margin:
        return "not borne out: worse than close"
    return "open: the interval is not within the margin"


def centre_gains(experiment: Experiment) -> pd.DataFrame:
    """Gain of every centre by federated training, smallest training centre first, external centres last."""
    order = [*sorted(experiment.sizes, key=lambda centre: experiment.sizes[centre]), *experiment.results.external]
    return pd.DataFrame(
        [
            {
                "centre": centre,
                "training": experiment.sizes.get(centre, 0),
                "held_out": len(experiment.gains("ffe", centre)),
                **{strategy: bootstrap([experiment.gains(strategy, centre)]) for strategy in FEDERATED},
            }
            for centre in order
        ]
    )


def as_markdown(judged: pd.DataFrame, gains: pd.DataFrame, margin: float) -> str:
    """Both tables and how to read them."""
    lines = [
        "| claim | difference in DSC | | p | |",
        "| --- | --- | ---: | ---: | --- |",
        *(
            f"| {row.claim} | {row.difference} | {_show(row.interval)} | {show_p_value(row.p)} | {row.verdict} |"
            for row in judged.itertuples()
        ),
        "",
        f"| centre | training cases | held-out cases | {' | '.join(f'{strategy} − local' for strategy in FEDERATED)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(FEDERATED),
        *(
            f"| {row['centre']} | {row['training'] or 'external'} | {row['held_out']} | "
            f"{' | '.join(_show(row[strategy]) for strategy in FEDERATED)} |"
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
    experiment, margin = read_experiment(folder), margin_of_the_paper()
    gains = centre_gains(experiment)
    text = as_markdown(claims(experiment, margin), gains, margin)
    write_atomically(folder / "claims.md", text)
    intervals = {
        f"{row['centre']} ({row['training'] or 'external'})": {strategy: row[strategy] for strategy in FEDERATED}
        for row in gains.to_dict("records")
    }
    title = "DSC less that of local on the same cases; in brackets training cases"
    save_figure(forest(intervals, title, strategy_colours(FEDERATED)), folder, "gains")
    return text


if __name__ == "__main__":
    try:
        for argument in sys.argv[1:]:
            print(write_claims(Path(argument)))
    except FednnUNetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
