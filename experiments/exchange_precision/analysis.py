"""Compare precisions of a sweep with float32, paired by seed: table, figure and CSV."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fednnunet.evaluation.statistics import Interval, mean_interval
from fednnunet.files import write_atomically
from fednnunet.reporting.figures import forest, save_figure, strategy_colours
from fednnunet.reporting.run_folder import read_run
from fednnunet.reporting.tables.results_table import case_means
from fednnunet.run_files import RUN_FILE

STRATEGIES = ("asym", "ffe")
EXACT = "float32"
PRECISIONS = (EXACT, "bfloat16", "int8", "int4")


def read_scores(runs: Path) -> pd.DataFrame:
    """One row per finished run: strategy, precision, seed, DSC, and MB that all nodes send and receive in a round.

    The DSC is the mean over centres of the mean over a centre's held-out cases. The bytes are those of the last round.
    """
    rows = []
    for file in sorted(runs.glob(f"*/*/seed*/{RUN_FILE}")):
        run = read_run(file.parent)
        if not run.ended or run.cases.empty:
            continue
        last = run.rounds[run.rounds["round"] == run.rounds["round"].max()]
        rows.append(
            {
                "strategy": file.parts[-4],
                "precision": file.parts[-3],
                "seed": int(file.parts[-2].removeprefix("seed")),
                "dsc": case_means(run.cases).groupby("node")["dsc"].mean().mean(),
                "cases": len(case_means(run.cases)),
                "mb": last[["bytes_up", "bytes_down"]].to_numpy().sum() / 1e6,
            }
        )
    return pd.DataFrame(rows, columns=["strategy", "precision", "seed", "dsc", "cases", "mb"])


def differences(scores: pd.DataFrame, strategy: str, precision: str) -> pd.Series:
    """DSC less that of float32, by seed, of the seeds that both have finished."""
    dsc = scores[scores["strategy"] == strategy].pivot(index="seed", columns="precision", values="dsc")
    if not {precision, EXACT} <= set(dsc.columns):
        return pd.Series(dtype=float)
    return (dsc[precision] - dsc[EXACT]).dropna()


def comparison(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per strategy and precision: seeds, DSC, difference to float32, each with its 95 % interval, and bytes."""
    rows = []
    for strategy in STRATEGIES:
        exact = scores[(scores["strategy"] == strategy) & (scores["precision"] == EXACT)]
        for precision in PRECISIONS:
            of_row = scores[(scores["strategy"] == strategy) & (scores["precision"] == precision)]
            if of_row.empty:
                continue
            paired = differences(scores, strategy, precision)
            row = {"strategy": strategy, "precision": precision, "seeds": len(of_row)}
            row |= {f"dsc_{key}": value for key, value in vars(mean_interval(of_row["dsc"])).items()}
            if precision != EXACT and not paired.empty:
                row["pairs"] = len(paired)
                row |= {f"difference_{key}": value for key, value in vars(mean_interval(paired)).items()}
            row["bytes"] = of_row["mb"].mean() / exact["mb"].mean() if len(exact) else float("nan")
            rows.append(row)
    return pd.DataFrame(rows)


def as_markdown(rows: pd.DataFrame) -> str:
    """The comparison as a table for the README."""
    head = ["strategy", "`exchange.dtype`", "bytes", "DSC ↑ [95 % CI]", "to float32 [95 % CI]", "half-width"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for row in rows.to_dict("records"):
        own = row["precision"] == EXACT or pd.isna(row.get("difference_mean"))
        low, high = row.get("difference_low"), row.get("difference_high")
        cells = [
            f"`{row['strategy']}`",
            row["precision"],
            f"{100 * row['bytes']:.1f} %",
            f"{row['dsc_mean']:.3f} [{row['dsc_low']:.3f}, {row['dsc_high']:.3f}]",
            "–" if own else f"{row['difference_mean']:+.3f} [{low:+.3f}, {high:+.3f}]",
            "–" if own else f"{(high - low) / 2:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_comparison(out: Path) -> str:
    """Write ``scores.csv``, ``comparison.csv``, ``.md``, ``.png`` and ``.svg`` into ``out``; returns the table."""
    scores = read_scores(out / "runs")
    if scores.empty:
        return f"{out}: no run is finished yet"
    rows = comparison(scores)
    text = f"{scores['seed'].nunique()} seeds, {scores['cases'].iloc[0]} held-out cases each\n\n{as_markdown(rows)}"
    write_atomically(out / "scores.csv", scores.to_csv(index=False))
    write_atomically(out / "comparison.csv", rows.to_csv(index=False))
    write_atomically(out / "comparison.md", text)
    intervals, dots, colours = {}, {}, {}
    of_strategies = strategy_colours(list(STRATEGIES))
    for row in rows[rows["precision"] != EXACT].to_dict("records"):
        paired = differences(scores, row["strategy"], row["precision"])
        if paired.empty:
            continue
        name = f"{row['strategy']}, {row['precision']}"
        found = mean_interval(paired)
        intervals[name] = {name: Interval(found.mean, found.low, found.high)}
        dots[name], colours[name] = paired.to_list(), of_strategies[row["strategy"]]
    if intervals:
        figure = forest(intervals, "DSC minus that of float32, same seed", colours, dots)
        save_figure(figure, out, "comparison")
    return text
