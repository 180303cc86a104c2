"""After a run its table and report; after a sweep one table and report over all its runs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fednnunet.errors import DataError
from fednnunet.reporting.report import results_of, write_report
from fednnunet.reporting.run_folder import merge, merge_rounds, read_runs, write_csv
from fednnunet.reporting.tables import MEAN, summarise


class Result(NamedTuple):
    """What a run ends with.

    Attributes:
        text: the table of results and the path of the report, to print.
        dsc: mean over training centres, each the mean over its held-out cases; None where one has no score.
    """

    text: str
    dsc: float | None


def finish_run(run_folder: Path) -> Result:
    """Write ``summary.csv`` and ``report.html`` of one run.

    Raises:
        DataError: a file of the run can not be read; names it.
    """
    (run,) = read_runs([run_folder])
    write_csv(summarise(run.cases.drop(columns="seed")), run_folder / "summary.csv")
    report = write_report(run_folder, [run_folder])
    table = results_of([run])
    text = f"\n{table.as_text() if table else run.problem}\nreport: {os.path.relpath(report)}"
    dsc = math.nan if table is None else float(table.values["dsc"].loc[run.setup, MEAN])
    return Result(text, None if math.isnan(dsc) else dsc)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among ``folders`` and, where one holds several runs, below it; sorted within a sweep.

    Raises:
        DataError: a folder holds no run; names it.
    """
    found: list[Path] = []
    for folder in folders:
        runs = [folder] if (folder / "run.json").is_file() else sorted(path.parent for path in folder.rglob(".hydra"))
        if not runs:
            raise DataError(f"{folder} holds no run of train.py; name the folder of a run, or of a sweep")
        found += [run for run in runs if run not in found]
    return found


def compare_runs(folder: Path, run_folders: Sequence[Path], console: Console) -> Path:
    """Write merged tables and one report of several runs into ``folder`` and print the table.

    The CSV files have the columns of a run's; a column ``seed`` follows where seeds differ, and
    in ``rounds.csv`` a column ``fold`` where folds do.

    Returns:
        Path of the report.

    Raises:
        DataError: a file of a run can not be read; names it.
    """
    runs = read_runs(run_folders)
    cases = merge([run.cases for run in runs])
    write_csv(cases, folder / "cases.csv")
    write_csv(summarise(cases), folder / "summary.csv")
    write_csv(merge_rounds([run.rounds for run in runs]), folder / "rounds.csv")
    report = write_report(folder, run_folders)
    table = results_of(runs)
    console.print()
    if table is not None:
        if console.is_terminal:
            console.print(table.as_rich())
        else:
            console.print(table.as_text(), soft_wrap=True, highlight=False, end="")
    for run in runs:
        if run.problem:
            console.print(f"{run.problem}.", style="yellow", soft_wrap=True, highlight=False)
    console.print(f"\nreport: {os.path.relpath(report)}", soft_wrap=True, highlight=False)
    return report
