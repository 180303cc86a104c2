"""Write the table and report of a run when it ends, and of several runs together."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fednnunet.errors import DataError
from fednnunet.reporting.report import write_report
from fednnunet.reporting.results import collect_results
from fednnunet.reporting.run_folder import read_runs, write_csv
from fednnunet.reporting.scores import join_means
from fednnunet.reporting.tables.export import write_tables
from fednnunet.reporting.tables.overview import overview
from fednnunet.reporting.tables.results_table import MEAN, External
from fednnunet.run_files import CASES_FILE, COMPARISONS_FILE, ROUNDS_FILE, RUN_FILE, SUMMARY_FILE


class Result(NamedTuple):
    """Result of a run.

    Attributes:
        text: results table and path of the report, to print.
        dsc: mean DSC over training centres, each the mean over its held-out cases; None if one has no score.
    """

    text: str
    dsc: float | None


def finish_run(run_folder: Path) -> Result:
    """Write ``summary.csv`` and ``report.html`` of one run.

    Raises:
        DataError: a file of the run cannot be read; names it.
    """
    (run,) = read_runs([run_folder])
    results = collect_results([run])
    write_csv(results.summary, run_folder / SUMMARY_FILE)
    report = write_report(run_folder, results)
    table = results.table
    text = f"\n{overview(table).as_text() if table else run.problem}\nreport: {os.path.relpath(report)}"
    dsc = math.nan if table is None else float(table.values["dsc"].loc[run.strategy, MEAN])
    return Result(text, None if math.isnan(dsc) else dsc)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders among ``folders``, or below one that holds several runs; sorted within a sweep.

    Raises:
        DataError: a folder holds no run; names it.
    """
    found: list[Path] = []
    for folder in folders:
        runs = [folder] if (folder / RUN_FILE).is_file() else sorted(path.parent for path in folder.rglob(".hydra"))
        if not runs:
            raise DataError(f"{folder} holds no run of train.py; name the folder of a run, or of a sweep")
        found += [run for run in runs if run not in found]
    return found


def compare_runs(
    folder: Path,
    run_folders: Sequence[Path],
    console: Console,
    reference: str | None = None,
    external: External = "mean",
) -> Path:
    """Write merged tables and one report of several runs into ``folder``, and print the table.

    ``table.md``, ``table.tex`` and ``table.csv`` hold the table, with the paper's numbers if it has a table for the
    dataset. The other CSV files have the same columns as a run's; a column ``seed`` follows if seeds differ, and in
    ``rounds.csv`` a column ``fold`` if folds do. ``comparisons.csv`` is written if there is a reference.

    Args:
        folder: folder for the files.
        run_folders: folders of the runs.
        console: where to print the table.
        reference: strategy that the others are compared with; None for ``local``, if there is one.
        external: models that count at external nodes (:func:`~fednnunet.reporting.tables.results_table.own_scores`).

    Returns:
        Path of the report.

    Raises:
        DataError: a file of a run cannot be read, or the runs cannot be compared; names them.
        ConfigError: there is no such reference, or no such model was scored at external nodes.
    """
    results = collect_results(read_runs(run_folders), reference, external)
    write_csv(join_means(results.cases, results.means), folder / CASES_FILE)
    write_csv(results.summary, folder / SUMMARY_FILE)
    write_csv(results.rounds, folder / ROUNDS_FILE)
    if results.comparison is not None:
        write_csv(results.comparison.rows, folder / COMPARISONS_FILE)
    else:
        (folder / COMPARISONS_FILE).unlink(missing_ok=True)  # of an earlier report in this folder
    report = write_report(folder, results)
    console.print()
    if results.table is not None:
        write_tables(folder, results.table, results.compare_with_paper, results.labels)
        shown = overview(results.table)
        if console.is_terminal:
            console.print(shown.as_rich())
            for note in shown.notes:
                console.print(note, style="dim", highlight=False)
        else:
            console.print(shown.as_text(), soft_wrap=True, highlight=False, end="")
    if results.comparison is not None:
        console.print()
        for sentence in results.comparison.sentences():
            console.print(sentence, soft_wrap=not console.is_terminal, highlight=False)
    for problem in results.problems:
        console.print(f"{problem}.", style="yellow", soft_wrap=True, highlight=False)
    console.print(f"\nreport: {os.path.relpath(report)}", soft_wrap=True, highlight=False)
    return report
