"""What a conversion shows: what was found, how far it is, what came of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fednnunet.config.hydra_datasets import configured_dataset, dataset_names
from fednnunet.conversion.plan import ConversionPlan
from fednnunet.conversion.study import ConversionIssue, SourceCase
from fednnunet.conversion.writer import ConversionResult

SHOWN = 20
"""Remarks of a kind that are printed; the manifest has all."""


def show_plan(plan: ConversionPlan, console: Console) -> None:
    """Centres, their datasets, and what was found; then every problem."""
    table = Table(title="What was found")
    table.add_column("centre")
    table.add_column("dataset", no_wrap=True)
    for column in ("studies", "paper", "cases", "left out", "problems"):
        table.add_column(column, justify="right")
    for part in plan.parts:
        paper = part.centre.studies
        table.add_row(
            part.centre.name + (" (external)" if part.centre.external else ""),
            part.centre.dataset,
            str(part.patients),
            "" if paper is None else str(paper),
            str(len(part.studies)),
            str(len(part.left_out)),
            str(len(part.problems)),
        )
    if plan.problems or plan.left_out:
        table.add_row("(no centre)", "", "", "", "", str(len(plan.left_out)), str(len(plan.problems)))
    console.print(table)
    _show_remarks("problem", plan.all_problems, console)
    _show_remarks("left out", [*plan.left_out, *(remark for part in plan.parts for remark in part.left_out)], console)
    differing = [
        part.centre.name
        for part in plan.parts
        if part.centre.studies not in (None, part.patients, len(part.studies))  # the paper's studies may be either
    ]
    if differing:
        console.print(f"note: not as many studies as in the paper: {', '.join(differing)}", markup=False)


def show_result(
    done: Sequence[ConversionResult],
    new_problems: Sequence[ConversionIssue],
    target: Path,
    dataset: str | None,
    console: Console,
) -> None:
    """What is there now, what to know of it, and the command that trains on it.

    Args:
        done: what was converted.
        new_problems: that the plan could not tell.
        target: folder of the datasets.
        dataset: configuration that names the centres; None where there is none.
        console: takes it.
    """
    table = Table(title=f"In {target}")
    table.add_column("dataset")
    for column in ("cases", "of them new", "skipped", "left out"):
        table.add_column(column, justify="right")
    for entry in done:
        manifest = entry.manifest
        counts = (len(manifest.cases), entry.converted, len(manifest.skipped), len(manifest.left_out))
        table.add_row(entry.folder.name, *map(str, counts))
    console.print(table)
    _show_remarks("skipped", new_problems, console)
    _show_remarks(
        "note",
        [
            ConversionIssue(case, remark, entry.centre.name)
            for entry in done
            for case, record in entry.manifest.cases.items()
            for remark in record.remarks
        ],
        console,
    )
    _show_remarks("note", _same_files(done), console)
    console.print(f"\nTrain: {_training_command(done, target, dataset)}", markup=False, soft_wrap=True)


def _training_command(done: Sequence[ConversionResult], target: Path, dataset: str | None) -> str:
    start, where = "python train.py strategy=asym", shlex.quote(f"dataset.raw_folder={target}")
    if dataset is None:
        centres = ", ".join(
            f"{{name: {json.dumps(entry.centre.node)}, dataset: {entry.centre.dataset}"
            f"{', external: true' if entry.centre.external else ''}}}"
            for entry in done
        )
        return f"{start} dataset=custom {where} {shlex.quote(f'dataset.centres=[{centres}]')}"
    names = [dataset, f"{dataset}_public"]
    absent = {name: _absent(name, target) for name in names if name in dataset_names()}
    ready = next((name for name, missing in absent.items() if not missing), dataset)
    wanted = f"   (when {', '.join(absent[ready])} are there, too)" if absent[ready] else ""
    return f"{start} dataset={ready} {where}{wanted}"


def _absent(dataset: str, target: Path) -> list[str]:
    """Datasets of a configuration that are not in ``target`` yet."""
    folders = [str(centre.dataset) for centre in configured_dataset(dataset).centres]
    return [folder for folder in folders if not (target / folder / "dataset.json").is_file()]


def _same_files(done: Sequence[ConversionResult]) -> list[ConversionIssue]:
    """Cases whose files hold the same bytes as another case's."""
    first: dict[str, str] = {}
    found = []
    for entry in done:
        for case, record in entry.manifest.cases.items():
            image = next(iter(record.files.values()))
            here = f"{entry.centre.name}: {case}"
            if image in first:
                found.append(ConversionIssue(case, f"its image is that of {first[image]}", entry.centre.name))
            first.setdefault(image, here)
    return found


def _show_remarks(what: str, remarks: Sequence[ConversionIssue], console: Console) -> None:
    for remark in remarks[:SHOWN]:
        console.print(f"{what}: {remark.line}", markup=False, soft_wrap=True)
    if len(remarks) > SHOWN:
        console.print(f"{what}: … and {len(remarks) - SHOWN} more")


class ConsoleProgress:
    """A bar that tells which study was converted last, and how long the others take."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("converting"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[study]}"),
            console=console,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, studies: int, to_do: int) -> None:
        """``to_do`` of so many studies are not there yet."""
        self._task = self._bar.add_task("convert", total=studies, completed=studies - to_do, study="")

    def advance(self, study: SourceCase) -> None:
        """One more was looked at."""
        self._bar.update(self._task, advance=1, study=study.case)
