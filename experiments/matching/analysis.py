"""Compare the strategies of a finished sweep with the paper's AsymFedAvg: table, figure and CSV.

python experiments/matching/analysis.py outputs/matching/2d
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from fednnunet.evaluation.statistics import Interval, fisher, holm, mean_interval, show_p_value, wilcoxon_by_centre
from fednnunet.files import write_atomically
from fednnunet.reporting.figures import forest, save_figure, strategy_colours
from fednnunet.reporting.run_folder import read_run
from fednnunet.reporting.tables.results_table import case_means
from fednnunet.run_files import RUN_FILE

PAPER = "asym name all"
STRATEGIES = [
    "local",
    PAPER,
    "asym name groups",
    "asym resolution all",
    "asym resolution groups",
    "ffe",
    "centralized epochs",
    "centralized steps",
]


def read_cases(folder: Path) -> pd.DataFrame:
    """One row per strategy, seed and held-out case of all finished runs below ``folder``; only complete seeds."""
    runs = [read_run(path.parent) for path in sorted(folder.rglob(RUN_FILE))]
    cases = case_means(pd.concat([run.cases for run in runs], ignore_index=True))
    complete = cases.groupby("seed")["strategy"].nunique() == len(STRATEGIES)
    return cases[cases["seed"].isin(complete.index[complete])]


def scores_of_seeds(cases: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over centres of the mean over a centre's cases; rows are seeds, columns strategies."""
    of_centres = cases.groupby(["strategy", "seed", "node"])[metric].mean()
    return of_centres.groupby(["strategy", "seed"]).mean().unstack("strategy")[STRATEGIES]


def comparison(cases: pd.DataFrame) -> pd.DataFrame:
    """Scores of every strategy, and their difference to the paper's AsymFedAvg."""
    dsc, hd95 = scores_of_seeds(cases, "dsc"), scores_of_seeds(cases, "hd95")
    others = [strategy for strategy in STRATEGIES if strategy != PAPER]
    tests = {strategy: fisher(list(wilcoxon_by_centre(cases, strategy, PAPER).values())) for strategy in others}
    adjusted = holm(tests)
    paired = {strategy: float(stats.ttest_rel(dsc[strategy], dsc[PAPER]).pvalue) for strategy in others if len(dsc) > 1}
    rows = []
    for strategy in STRATEGIES:
        score, gain = mean_interval(dsc[strategy]), mean_interval(dsc[strategy] - dsc[PAPER])
        rows.append(
            {
                "strategy": strategy,
                **{f"dsc_{key}": value for key, value in vars(score).items()},
                "hd95_mean": float(hd95[strategy].mean()),
                **{f"gain_{key}": value for key, value in vars(gain).items()},
                "p_seeds": paired.get(strategy, np.nan),
                "p_cases": adjusted.get(strategy, np.nan),
                **cases[cases["strategy"] == strategy].groupby("node")["dsc"].mean().to_dict(),
            }
        )
    return pd.DataFrame(rows)


def as_markdown(rows: pd.DataFrame, centres: list[str]) -> str:
    """The comparison as a table for docs/explanation/layer_matching.md."""
    head = ["strategy", *centres, "DSC ↑ [95 % CI]", "HD95 (mm) ↓", "to the paper's asym", "p (seeds)", "p (cases)"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for row in rows.to_dict("records"):
        own = row["strategy"] == PAPER
        gain = "–" if own else f"{row['gain_mean']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        cells = [
            f"`{row['strategy']}`",
            *(f"{row[centre]:.3f}" for centre in centres),
            f"{row['dsc_mean']:.3f} [{row['dsc_low']:.3f}, {row['dsc_high']:.3f}]",
            f"{row['hd95_mean']:.1f}",
            gain,
            *(show_p_value(row[key]) for key in ("p_seeds", "p_cases")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_comparison(folder: Path) -> str:
    """Write ``comparison.csv``, ``.md``, ``.png`` and ``.svg`` into the sweep's folder; returns the table."""
    cases = read_cases(folder)
    if cases.empty:
        return f"{folder}: no seed is complete yet"
    rows, dsc = comparison(cases), scores_of_seeds(cases, "dsc")
    held_out = cases[cases["strategy"] == PAPER]
    text = (
        f"{folder.name}: {len(dsc)} seeds, {len(held_out)} held-out cases\n\n"
        f"{as_markdown(rows, list(dict.fromkeys(held_out['node'])))}"
    )
    write_atomically(folder / "comparison.csv", rows.to_csv(index=False))
    write_atomically(folder / "comparison.md", text)
    gains = {
        strategy: {strategy: Interval(row["gain_mean"], row["gain_low"], row["gain_high"])}
        for strategy, row in rows.set_index("strategy").iterrows()
    }
    of_strategies = strategy_colours([strategy.split(" ")[0] for strategy in gains])
    colours = {strategy: of_strategies[strategy.split(" ")[0]] for strategy in gains}
    of_seeds = dsc.sub(dsc[PAPER], axis="index").to_dict("list")
    title = f"DSC less that of {PAPER}, {folder.name}"
    save_figure(forest(gains, title, colours, of_seeds), folder, "comparison")
    return text


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(write_comparison(Path(argument)))
