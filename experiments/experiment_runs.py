"""What experiments share: train what is not finished, one after another, and put tables into a README.

Their scripts find it by the folder above their own, which they append to ``sys.path``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fednnunet.evaluation.statistics import Interval
from fednnunet.files import write_atomically
from fednnunet.run_files import RUN_FILE

ROOT = Path(__file__).resolve().parents[1]
TABLES_BEGIN, TABLES_END = "<!-- tables: begin -->", "<!-- tables: end -->"
"""Marks in a README, between which tables of seeds are."""


def run_folder(out: Path, training: str, seed: int) -> Path:
    """Folder of a training's run, where each is trained once for each seed."""
    return out / "runs" / training / f"seed{seed}"


def train_command(folder: Path, settings: Sequence[str], overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains into ``folder``, or continues there.

    Args:
        folder: folder of the run.
        settings: keys of the training.
        overrides: keys that go before these.
    """
    return [sys.executable, str(ROOT / "train.py"), *settings, f"hydra.run.dir={folder}", *overrides]


def train_unless_finished(name: str, folder: Path, command: Sequence[str]) -> None:
    """Train, or continue, and say what; a run that is finished stays.

    Args:
        name: what is trained.
        folder: folder of the run.
        command: as :func:`train_command` gives it.

    Raises:
        subprocess.CalledProcessError: the training failed; its output says why.
    """
    if not (folder / RUN_FILE).is_file():
        print(name, flush=True)
        subprocess.run(command, cwd=ROOT, check=True)


def exit_status(train: Callable[[], None]) -> int:
    """Exit status of a script that trains: that of a training that failed, 130 after Ctrl-C, else 0."""
    try:
        train()
    except KeyboardInterrupt:  # Ctrl-C reached the training too; it keeps its checkpoints and ends
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    except subprocess.CalledProcessError as failed:
        return failed.returncode
    return 0


def run_seeds(
    description: str,
    out: Path,
    trainings: Collection[str],
    train: Callable[[Path, str, int, Sequence[str]], None],
    write_results: Callable[[Path], str],
) -> int:
    """The script of an experiment that trains everything once for each seed; a seed is finished before the next.

    Args:
        description: of the script.
        out: folder of the experiment, unless the command names another.
        trainings: names of all.
        train: trains one for a seed, or continues, given the folder, its name, the seed and keys of the command.
        write_results: writes what is finished, and returns its tables.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated (default: %(default)s)")
    parser.add_argument("--trainings", default=",".join(trainings), help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out, help="folder of the experiment")
    parser.add_argument("--report-only", action="store_true", help="compare what is finished, train nothing")
    parser.add_argument("overrides", nargs="*", help="keys of all trainings, such as trainer.epochs=1")
    options = parser.parse_args()
    folder, chosen = options.out.resolve(), options.trainings.split(",")
    if unknown := set(chosen) - set(trainings):
        parser.error(f"--trainings: {min(unknown)} is none of {', '.join(trainings)}")
    seeds = [int(seed) for seed in options.seeds.split(",")]

    def train_all() -> None:
        for seed in seeds:
            for training in chosen:
                train(folder, training, seed, options.overrides)

    if not options.report_only and (status := exit_status(train_all)):
        return status
    print(write_results(folder))
    return 0


def as_text(interval: Interval, sign: str = "") -> str:
    """Mean, and its interval where there is one."""
    mean = f"{interval.mean:{sign}.3f}"
    return mean if np.isnan(interval.low) else f"{mean} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def is_below(interval: Interval) -> str:
    """Whether a difference is below 0 by more than its interval."""
    return "not known" if np.isnan(interval.high) else "**yes**" if interval.high < 0 else "no"


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows)) + "\n"


def with_published(found: pd.DataFrame, published: Path) -> pd.DataFrame:
    """Rows that were found, and those published of other seeds: seeds can be added later, on another machine.

    Digits vary with the processor, so what is compared within a seed must come from one: what is found of a seed
    replaces all that was published of it.

    Args:
        found: rows with a column ``seed``.
        published: CSV file of such rows; nothing is published where it is missing.
    """
    if not published.is_file():
        return found
    earlier = pd.read_csv(published)
    rows = pd.concat([earlier[~earlier["seed"].isin(found["seed"])], found], ignore_index=True)
    return rows.sort_values("seed", kind="stable", ignore_index=True)


def publish_between(readme: Path, begins: str, ends: str, text: str) -> None:
    """Replace what a README has between two marks.

    Raises:
        SystemExit: it lacks a mark.
    """
    before, mark, rest = readme.read_text(encoding="utf-8").partition(begins)
    _, end, after = rest.partition(ends)
    if not end:
        raise SystemExit(f"{readme} has no place for the table: it lacks {ends if mark else begins}")
    write_atomically(readme, f"{before}{mark}\n{text}\n{end}{after}")


def publish_seeds(
    found: pd.DataFrame, readme: Path, numbers: str, as_markdown: Callable[[pd.DataFrame], str]
) -> pd.DataFrame:
    """Put tables into a README and their numbers into a file beside it, with seeds that were published before.

    Args:
        found: what the tables are made of; rows with a column ``seed``.
        readme: has :data:`TABLES_BEGIN` and :data:`TABLES_END`.
        numbers: name of the CSV file.
        as_markdown: makes the tables.

    Returns:
        What the published tables are made of.

    Raises:
        SystemExit: the README has no place for them.
    """
    published = readme.parent / numbers
    rows = with_published(found, published)
    publish_between(readme, TABLES_BEGIN, TABLES_END, as_markdown(rows))
    write_atomically(published, rows.round(6).to_csv(index=False))
    return rows
