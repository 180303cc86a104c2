"""After a run its table and report; after a sweep one table and report over all its runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from fednnunet.errors import DataError
from fednnunet.reporting.paper import compare_with_paper
from fednnunet.reporting.report import results_of, write_report
from fednnunet.reporting.run_folder import merge, merge_rounds, read_runs, write_csv
from fednnunet.reporting.table_files import write_tables
from fednnunet.reporting.tables import summarise


def finish_run(run_folder: Path) -> str:
    """Write ``summary.csv`` and ``report.html`` of one run.

    Returns:
        The table of results and the path of the report, to print.

    Raises:
        DataError: a file of the run can not be read; names it.
    """
    (run,) = read_runs([run_folder])
    write_csv(summarise(run.cases.drop(columns="seed")), run_folder / "summary.csv")
    report = write_report(run_folder, [run_folder])
    table = results_of([run])
    return f"\n{table.as_text() if table else run.problem}\nreport: {os.path.relpath(report)}"


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

    ``table.md``, ``table.tex`` and ``table.csv`` hold the table, with the paper's numbers where it has a table of the
    dataset. The other CSV files have the columns of a run's; a column ``seed`` follows where seeds differ, and
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
        write_tables(folder, table, compare_with_paper(table, runs))
        if console.is_terminal:
            console.print(table.as_rich())
        else:
            console.print(table.as_text(), soft_wrap=True, highlight=False, end="")
    for run in runs:
        if run.problem:
            console.print(f"{run.problem}.", style="yellow", soft_wrap=True, highlight=False)
    console.print(f"\nreport: {os.path.relpath(report)}", soft_wrap=True, highlight=False)
    return report


class CompareRuns(Callback):
    """Hydra callback: compares the runs of a sweep when it ends."""

    def __init__(self) -> None:
        self._jobs: list[Path] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note the run's folder, so that older runs in the same sweep folder stay out."""
        self._jobs.append(Path(config.hydra.runtime.output_dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare this sweep's runs; where a launcher ran them elsewhere, all runs in the sweep's folder."""
        folder = Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir
        runs = self._jobs or sorted(path.parent for path in folder.rglob(".hydra"))
        if runs:
            compare_runs(folder, runs, Console())
