"""Compares the set-ups of a finished sweep with the paper's AsymFedAvg: table, figure and CSV.

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
from fednnunet.reporting.figures import forest, save_figure, setup_colours
from fednnunet.reporting.run_folder import read_run
from fednnunet.reporting.tables.results_table import case_means

PAPER = "asym name all"
SETUPS = [
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
    """One row per set-up, seed and held-out case of all finished runs below ``folder``; only complete seeds."""
    runs = [read_run(path.parent) for path in sorted(folder.rglob("run.json"))]
    cases = case_means(pd.concat([run.cases for run in runs], ignore_index=True))
    complete = cases.groupby("seed")["strategy"].nunique() == len(SETUPS)
    return cases[cases["seed"].isin(complete.index[complete])]


def scores_of_seeds(cases: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over centres of the mean over a centre's cases; rows are seeds, columns set-ups."""
    of_centres = cases.groupby(["strategy", "seed", "node"])[metric].mean()
    return of_centres.groupby(["strategy", "seed"]).mean().unstack("strategy")[SETUPS]


def comparison(cases: pd.DataFrame) -> pd.DataFrame:
    """What the table shows of every set-up, and its difference to the paper's AsymFedAvg."""
    dsc, hd95 = scores_of_seeds(cases, "dsc"), scores_of_seeds(cases, "hd95")
    others = [setup for setup in SETUPS if setup != PAPER]
    tests = {setup: fisher(list(wilcoxon_by_centre(cases, setup, PAPER).values())) for setup in others}
    adjusted = holm(tests)
    paired = {setup: float(stats.ttest_rel(dsc[setup], dsc[PAPER]).pvalue) for setup in others if len(dsc) > 1}
    rows = []
    for setup in SETUPS:
        score, gain = mean_interval(dsc[setup]), mean_interval(dsc[setup] - dsc[PAPER])
        rows.append(
            {
                "setup": setup,
                **{f"dsc_{key}": value for key, value in vars(score).items()},
                "hd95_mean": float(hd95[setup].mean()),
                **{f"gain_{key}": value for key, value in vars(gain).items()},
                "p_seeds": paired.get(setup, np.nan),
                "p_cases": adjusted.get(setup, np.nan),
                **cases[cases["strategy"] == setup].groupby("node")["dsc"].mean().to_dict(),
            }
        )
    return pd.DataFrame(rows)


def as_markdown(rows: pd.DataFrame, centres: list[str]) -> str:
    """The comparison as a table for docs/explanation/layer_matching.md."""
    head = ["set-up", *centres, "DSC ↑ [95 % CI]", "HD95 (mm) ↓", "to the paper's asym", "p (seeds)", "p (cases)"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for row in rows.to_dict("records"):
        own = row["setup"] == PAPER
        gain = "–" if own else f"{row['gain_mean']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        cells = [
            f"`{row['setup']}`",
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
        setup: {setup: Interval(row["gain_mean"], row["gain_low"], row["gain_high"])}
        for setup, row in rows.set_index("setup").iterrows()
    }
    of_strategies = setup_colours([setup.split(" ")[0] for setup in gains])
    colours = {setup: of_strategies[setup.split(" ")[0]] for setup in gains}
    of_seeds = dsc.sub(dsc[PAPER], axis="index").to_dict("list")
    title = f"DSC less that of {PAPER}, {folder.name}"
    save_figure(forest(gains, title, colours, of_seeds), folder, "comparison")
    return text


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(write_comparison(Path(argument)))
