"""Table and figure of finished runs: DSC, time, traffic and memory by number of nodes.

python experiments/scaling/analysis.py outputs/scaling
python experiments/scaling/analysis.py outputs/scaling --publish   also into the README and docs/images
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from fednnunet.evaluation.statistics import Interval, bootstrap
from fednnunet.files import write_atomically
from fednnunet.reporting.figures.style import (
    INK,
    clean,
    legend,
    new_figure,
    save_figure,
    save_picture,
    strategy_colours,
)
from fednnunet.reporting.run_folder import Run, read_run
from fednnunet.reporting.tables.results_table import case_means
from fednnunet.run_files import RUN_FILE

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import publish_between

FOLDER = Path(__file__).resolve().parent
TABLE_BEGINS, TABLE_ENDS = "<!-- table -->", "<!-- end of table -->"
"""Between them the README has table and figure."""
FIGURE = "![DSC, minutes, traffic and memory by number of nodes](../../docs/images/scaling.png)"
ALONE, SAMPLED = "local", 0.1
TRAININGS = {
    ALONE: ["strategy=local"],
    **{name: [f"strategy={name}"] for name in ("asym", "ffe")},
    **{
        f"{name} {SAMPLED}": [f"strategy={name}", f"strategy.aggregation.fraction_train={SAMPLED}"]
        for name in ("asym", "ffe")
    },
}
"""Name to what the command line changes; a number is ``fraction_train``."""
LEARNED = 0.5
"""Mean pseudo-Dice of a round's nodes that counts as having learned."""


def run_folder(out: Path, nodes: int, training: str) -> Path:
    """Where a training lies."""
    return out / "runs" / f"{nodes}_nodes" / training.replace(" ", "_")


def results(out: Path) -> pd.DataFrame:
    """One row per finished run, in the order of nodes and trainings.

    Columns: ``nodes``, ``training``; ``dsc`` over all held-out cases, with interval, and over hospitals; ``gain``, the
    paired difference to ``local`` of as many nodes, with interval; ``trainings_of_nodes``, rounds times nodes in them;
    ``rounds``, and ``rounds_to_learn``; ``minutes``, ``megabytes`` both ways and ``memory_gib`` of all processes.
    """
    return pd.DataFrame(list(_rows(out)))


def _rows(out: Path) -> Iterator[dict[str, object]]:
    counts = sorted(int(folder.name.partition("_")[0]) for folder in (out / "runs").glob("*_nodes"))
    for nodes in counts:
        alone = None
        for training in TRAININGS:
            folder = run_folder(out, nodes, training)
            if not (folder / RUN_FILE).is_file():
                continue
            run = read_run(folder)
            scores = case_means(run.cases).set_index(["node", "case"])["dsc"]
            alone = scores if training == ALONE else alone
            yield _row(nodes, training, run, scores, None if alone is None else scores - alone)


def _row(nodes: int, training: str, run: Run, scores: pd.Series, gains: pd.Series | None) -> dict[str, object]:
    learned = run.rounds.groupby("round")["pseudo_dice"].mean()
    gain = bootstrap([gains]) if gains is not None and training != ALONE else Interval(np.nan, np.nan, np.nan)
    return {
        "nodes": nodes,
        "training": training,
        **_columns("dsc", bootstrap([scores])),
        "dsc_of_hospitals": float(scores.groupby("node").mean().mean()),
        **_columns("gain", gain),
        "cases": len(scores),
        "rounds": int(run.rounds["round"].max()),
        "rounds_to_learn": float(learned.index[learned >= LEARNED].min()),
        "trainings_of_nodes": len(run.rounds),
        "minutes": run.info["seconds"] / 60,
        "megabytes": float(run.rounds[["bytes_up", "bytes_down"]].to_numpy().sum()) / 1e6,
        "memory_gib": run.info["peak_memory_gib"],
    }


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}_{key}": value for key, value in vars(interval).items()}


def as_markdown(table: pd.DataFrame) -> str:
    """The table for the README."""
    head = ["nodes", "training", "DSC ↑ [95 % CI]", "of hospitals", "to local [95 % CI]", f"rounds to {LEARNED}"]
    head += ["trainings of nodes", "minutes", "MB", "GiB"]
    lines = [f"| {' | '.join(head)} |", f"| ---: | --- |{' ---: |' * (len(head) - 2)}"]
    for row in table.to_dict("records"):
        gain = f"{row['gain_mean']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        cells = [
            *(str(row["nodes"]), f"`{row['training']}`"),
            f"{row['dsc_mean']:.3f} [{row['dsc_low']:.3f}, {row['dsc_high']:.3f}]",
            f"{row['dsc_of_hospitals']:.3f}",
            "–" if np.isnan(row["gain_mean"]) else gain,
            "–" if np.isnan(row["rounds_to_learn"]) else f"{row['rounds_to_learn']:.0f} of {row['rounds']}",
            *(str(row["trainings_of_nodes"]), f"{row['minutes']:.1f}"),
            *(f"{row['megabytes']:.0f}", f"{row['memory_gib']:.1f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(table: pd.DataFrame) -> Figure:
    """DSC, minutes, traffic and memory by number of nodes; dashed where a tenth of the nodes trains in a round."""
    colours = strategy_colours(list(dict.fromkeys(name.split(" ")[0] for name in TRAININGS)))
    figure = new_figure((9.0, 6.0))
    panels = {
        "dsc_mean": "DSC of held-out cases",
        "minutes": "minutes in all",
        "megabytes": "MB sent and received in all",
        "memory_gib": "peak memory of all processes, GiB",
    }
    counts = sorted(set(table["nodes"]))
    for axes, (column, title) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        clean(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xscale("log")
        axes.set_xticks(counts, map(str, counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("nodes")
        for place, (name, rows) in enumerate(table.groupby("training", sort=False)):
            colour, dashes = colours[str(name).split(" ")[0]], "--" if " " in str(name) else "-"
            nodes = rows["nodes"] * 1.02 ** (place - 2)  # intervals side by side
            if column == "dsc_mean":
                axes.vlines(nodes, rows["dsc_low"], rows["dsc_high"], color=colour, lw=1, alpha=0.6)
            axes.plot(nodes, rows[column], color=colour, ls=dashes, lw=1.8, marker="o", ms=4.5)
        if column == "megabytes":
            axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
    names = {name: name.replace(" ", ", fraction_train=") for name in TRAININGS}
    legend(
        figure,
        [
            Line2D([], [], color=colours[name.split(" ")[0]], ls="--" if " " in name else "-", lw=2, label=label)
            for name, label in names.items()
        ],
    )
    return figure


def write_scaling(out: Path) -> str:
    """Write ``scaling.csv``, ``.md``, ``.png`` and ``.svg`` into the experiment's folder; returns the table."""
    table = results(out)
    if table.empty:
        return f"{out}: no run is finished yet"
    text = as_markdown(table)
    write_atomically(out / "scaling.csv", table.to_csv(index=False))
    write_atomically(out / "scaling.md", text)
    save_figure(draw(table), out, "scaling")
    return text


def publish(out: Path, readme: Path, images: Path) -> None:
    """Put table and figure between the marks of ``readme``; the figure lies in ``images``.

    Raises:
        SystemExit: it has no place for them.
    """
    table = results(out)
    publish_between(readme, TABLE_BEGINS, TABLE_ENDS, f"{as_markdown(table)}\n{FIGURE}")
    save_picture(draw(table), images, "scaling")


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the experiment")
    parser.add_argument("--publish", action="store_true", help="renew the README's table and docs/images/scaling.png")
    arguments = parser.parse_args()
    print(write_scaling(arguments.out))
    if arguments.publish:
        publish(arguments.out, FOLDER / "README.md", FOLDER.parents[1] / "docs/images")


if __name__ == "__main__":
    main()
