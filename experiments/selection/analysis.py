"""What hospitals end with: alone, by the best single strategy, by their own choice, by an oracle; table and figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from oracle import oracle

from fednnunet.evaluation.choice import Selection
from fednnunet.evaluation.statistics import Interval
from fednnunet.files import write_atomically
from fednnunet.reporting.figures import forest, save_figure, strategy_colours
from fednnunet.reporting.figures.style import save_picture
from fednnunet.reporting.gains import LOSES, gain_of, judge
from fednnunet.reporting.selected import SELECTED
from fednnunet.run_files import RUN_FILE
from fednnunet.selection.averaged import with_averages
from fednnunet.selection.choose import Chosen, choose_models
from fednnunet.selection.run_folders import read_run_sources

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import publish_seeds

README = Path(__file__).parent / "README.md"
IMAGES = README.parents[2] / "docs" / "images"
FIGURE = "selection"
ALONE = "local"
BEST_SINGLE = "best single"
PRODUCT = 1.0
NOISE = (0.0, PRODUCT, 2.0)
"""Standard errors that count as noise, among them the product's own."""


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


def outcomes(chosen: Chosen, seed: int, noise: float = PRODUCT) -> pd.DataFrame:
    """One row per hospital and candidate, and one each for ``selected``, ``best single`` and ``oracle``.

    Columns: ``seed``, ``noise`` (standard errors that the choice took for it), ``node``, ``cases``, ``what``, ``dsc``;
    ``difference`` to training alone, with ``low`` and ``high``; ``loses``; and ``model``, which it is in the end.
    """
    rows = []
    for node, one in of_hospitals(chosen):
        shown = {name: name for name in chosen.selections.candidates}
        shown |= {SELECTED: SELECTED, BEST_SINGLE: str(chosen.selections.best_single), "oracle": oracle(one)}
        for what, name in shown.items():
            scores = one.selected if name == SELECTED else one.scores[name]
            gain = gain_of([one], name, ALONE)
            rows.append(
                {
                    "seed": seed,
                    "noise": noise,
                    "node": node,
                    "cases": len(one.scores),
                    "what": what,
                    "dsc": one.mean(scores),
                    "difference": gain.mean,
                    "low": gain.low,
                    "high": gain.high,
                    "loses": judge(gain) == LOSES,
                    "model": one.final.candidate if what == SELECTED else name,
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


def noise_table(rows: pd.DataFrame) -> str:
    """The same of the choice alone, by how much counts as noise."""
    lines = ["| standard errors that are noise | mean DSC | hospitals below alone, beyond the interval | stay alone |"]
    lines.append("| ---: | ---: | ---: | ---: |")
    for noise, of in rows[rows["what"] == SELECTED].groupby("noise"):
        alone = (of["model"] == ALONE).sum()
        lines.append(
            f"| {noise:g} | {of['dsc'].mean():.3f} | {of['loses'].sum()} of {len(of)} | {alone} of {len(of)} |"
        )
    return "\n".join(lines) + "\n"


def as_markdown(rows: pd.DataFrame) -> str:
    """All tables, of what :func:`outcomes` gives for every seed and noise."""
    of_product = rows[rows["noise"] == PRODUCT]
    single = of_product[of_product["what"] == BEST_SINGLE].groupby("seed")["model"].first()
    best = ", ".join(f"{model} (seed {seed})" for seed, model in single.items())
    parts = [
        f"Seeds: {rows['seed'].nunique()}. Best single candidate: {best}.\n",
        *(hospital_table(of_product), loser_table(of_product), noise_table(rows)),
    ]
    return "\n".join(parts).replace("-0.", "−0.")


def draw_differences(rows: pd.DataFrame) -> Figure:
    """What best single candidate and own choice add at each hospital."""
    compared = [BEST_SINGLE, SELECTED]
    shown = rows[(rows["noise"] == PRODUCT) & rows["what"].isin(compared) & np.isfinite(rows["difference"])]
    several = rows["seed"].nunique() > 1
    intervals = {
        f"{node}, seed {seed}" if several else str(node): {
            row["what"]: Interval(*(100 * row[key] for key in ("difference", "low", "high")))
            for row in of_hospital.to_dict("records")
        }
        for (node, seed), of_hospital in shown.groupby(["node", "seed"], sort=False)
    }
    title = "points of DSC over training alone, 95 % interval over cases"
    return forest(intervals, title, strategy_colours(compared))


def read_outcomes(out: Path) -> pd.DataFrame:
    """:func:`outcomes` of every finished seed and noise; empty where no seed is finished."""
    found = []
    for seed, folders in finished_runs(out / "runs").items():
        sources = with_averages(read_run_sources(folders), ensembles=False)
        found += [outcomes(choose_models(sources, standard_errors=noise), seed, noise) for noise in NOISE]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def write_comparison(out: Path) -> str:
    """Write ``outcomes.csv``, ``comparison.md`` and the figure into ``out``; returns the text."""
    rows = read_outcomes(out)
    if rows.empty:
        return f"{out}: no seed has finished {ALONE} and another training yet"
    text = as_markdown(rows)
    write_atomically(out / "outcomes.csv", rows.to_csv(index=False))
    write_atomically(out / "comparison.md", text)
    save_figure(draw_differences(rows), out, FIGURE)
    return text


def publish(out: Path, readme: Path = README, images: Path = IMAGES) -> None:
    """Put the tables into the README, their numbers beside it and the figure into the documentation.

    Seeds that were published before stay.

    Raises:
        SystemExit: no seed is finished, or the README has no place for them.
    """
    found = read_outcomes(out)
    if found.empty:
        raise SystemExit(f"{out}: no seed has finished {ALONE} and another training yet")
    rows = publish_seeds(found, readme, "outcomes.csv", as_markdown)
    save_picture(draw_differences(rows), images, FIGURE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put tables and figure of what is finished into README and docs.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("outputs/selection"), help="folder of the experiment")
    publish(parser.parse_args().out.resolve())
