"""What hospitals end with: alone, by the best single strategy, by their own choice, by an oracle; table and figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from oracle import oracle

from fednnunet.evaluation.choice import Selection
from fednnunet.evaluation.statistics import Interval
from fednnunet.files import write_atomically
from fednnunet.reporting.figures import forest, save_figure, strategy_colours
from fednnunet.reporting.gains import LOSES, gain_of, judge
from fednnunet.reporting.selected import SELECTED
from fednnunet.run_files import RUN_FILE
from fednnunet.selection.averaged import with_averages
from fednnunet.selection.choose import Chosen, choose_models
from fednnunet.selection.run_folders import read_run_sources

ALONE = "local"
NOISE = (0.0, 1.0, 2.0)
"""Standard errors that count as noise; the product's own is 1."""


def finished_runs(runs: Path) -> dict[int, list[Path]]:
    """Seed to the folders of its finished runs, of the seeds that have finished as many trainings as any."""
    by_seed: dict[int, list[Path]] = {}
    for file in sorted(runs.glob(f"*/seed*/{RUN_FILE}")):
        by_seed.setdefault(int(file.parent.name.removeprefix("seed")), []).append(file.parent)
    complete = {seed: folders for seed, folders in by_seed.items() if any(f.parent.name == ALONE for f in folders)}
    most = max((len(folders) for folders in complete.values()), default=0)
    return {seed: folders for seed, folders in sorted(complete.items()) if len(folders) == most and most > 1}


def of_hospitals(chosen: Chosen) -> list[tuple[str, Selection]]:
    """Hospitals of one seed and what they chose."""
    return [(node, one) for node, seeds in chosen.selections.of_node.items() for one in seeds.values()]


def outcomes(chosen: Chosen, seed: int) -> pd.DataFrame:
    """One row per hospital and candidate, and one each for ``selected``, ``best single`` and ``oracle``.

    Columns: ``seed``, ``node``, ``cases``, ``what``, ``dsc``; ``difference`` to training alone, with ``low`` and
    ``high``; ``loses``; and ``final``, the final choice.
    """
    rows = []
    for node, one in of_hospitals(chosen):
        shown = {name: name for name in chosen.selections.candidates}
        shown |= {SELECTED: SELECTED, "best single": str(chosen.selections.best_single), "oracle": oracle(one)}
        for what, name in shown.items():
            scores = one.selected if name == SELECTED else one.scores[name]
            gain = gain_of([one], name, ALONE)
            rows.append(
                {
                    "seed": seed,
                    "node": node,
                    "cases": len(one.scores),
                    "what": what,
                    "dsc": one.mean(scores),
                    "difference": gain.mean,
                    "low": gain.low,
                    "high": gain.high,
                    "loses": judge(gain) == LOSES,
                    "final": one.final.candidate if what == SELECTED else name,
                }
            )
    return pd.DataFrame(rows)


def hospital_table(rows: pd.DataFrame) -> str:
    """Hospitals, their mean over seeds, and in how many seeds each ends below training alone by more than noise."""
    names = ["alone", "best single", SELECTED, "oracle"]
    lines = [f"| hospital | cases | {' | '.join(names)} | cost to the oracle |", f"| --- | ---: |{' ---: |' * 5}"]
    means = rows.replace({"what": {ALONE: "alone"}}).groupby(["node", "what"], sort=False)["dsc"].mean().unstack("what")
    counts = rows.groupby("node", sort=False)["cases"].first()
    for node, row in means.loc[counts.index].iterrows():
        cells = " | ".join(f"{row[name]:.3f}" for name in names)
        lines.append(f"| {node} | {counts[node]} | {cells} | {row['oracle'] - row[SELECTED]:.3f} |")
    mean = means.mean()
    cells = " | ".join(f"{mean[name]:.3f}" for name in names)
    lines.append(f"| mean | | {cells} | {mean['oracle'] - mean[SELECTED]:.3f} |")
    return "\n".join(lines) + "\n"


def loser_table(rows: pd.DataFrame) -> str:
    """How many hospitals, of all seeds, end below training alone by more than their interval, by what they use."""
    lines = [
        "| | mean DSC | hospitals below alone, beyond the interval | lowest difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    for what, of_what in rows[rows["what"] != ALONE].groupby("what", sort=False):
        worst = of_what.loc[of_what["difference"].idxmin()]
        lines.append(
            f"| {what} | {of_what['dsc'].mean():.3f} | {of_what['loses'].sum()} of {len(of_what)} | "
            f"{worst['difference']:+.3f} ({worst['node']}, seed {worst['seed']}) |"
        )
    return "\n".join(lines) + "\n"


def noise_table(by_noise: dict[float, pd.DataFrame]) -> str:
    """The same of the choice alone, by how much counts as noise."""
    lines = ["| standard errors that are noise | mean DSC | hospitals below alone, beyond the interval | stay alone |"]
    lines.append("| ---: | ---: | ---: | ---: |")
    for noise, rows in by_noise.items():
        of = rows[rows["what"] == SELECTED]
        alone = (of["final"] == ALONE).sum()
        lines.append(
            f"| {noise:g} | {of['dsc'].mean():.3f} | {of['loses'].sum()} of {len(of)} | {alone} of {len(of)} |"
        )
    return "\n".join(lines) + "\n"


def write_comparison(out: Path) -> str:
    """Write ``outcomes.csv``, ``comparison.md`` and the figure ``comparison`` into ``out``; returns the text."""
    seeds = finished_runs(out / "runs")
    if not seeds:
        return f"{out}: no seed has finished {ALONE} and another training yet"
    sources = {seed: with_averages(read_run_sources(folders), ensembles=False) for seed, folders in seeds.items()}
    by_noise = {
        noise: pd.concat(
            [outcomes(choose_models(found, standard_errors=noise), seed) for seed, found in sources.items()],
            ignore_index=True,
        )
        for noise in NOISE
    }
    rows = by_noise[1.0]
    names = sorted({folder.parent.name for folders in seeds.values() for folder in folders})
    text = "\n".join(
        [
            f"Seeds {', '.join(map(str, seeds))}; trainings {', '.join(names)}.\n",
            *(hospital_table(rows), loser_table(rows), noise_table(by_noise)),
        ]
    ).replace("-0.", "−0.")
    write_atomically(out / "outcomes.csv", rows.to_csv(index=False))
    write_atomically(out / "comparison.md", text)
    compared = ["best single", SELECTED]
    intervals = {
        f"{node}, seed {seed}" if len(seeds) > 1 else str(node): {
            row["what"]: Interval(*(100 * row[key] for key in ("difference", "low", "high")))
            for row in of_hospital[of_hospital["what"].isin(compared)].to_dict("records")
            if np.isfinite(row["difference"])
        }
        for (node, seed), of_hospital in rows.groupby(["node", "seed"], sort=False)
    }
    title = "points of DSC over training alone, 95 % interval over cases"
    save_figure(forest(intervals, title, strategy_colours(compared)), out, "comparison")
    return text
