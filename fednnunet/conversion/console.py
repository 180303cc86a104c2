"""What a conversion prints: what was found, its progress, and the result."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fednnunet.config.hydra_datasets import configured_dataset, dataset_names
from fednnunet.conversion.plan import ConversionPlan
from fednnunet.conversion.scan_result import ConversionIssue, SourceCase
from fednnunet.conversion.writer import ConversionResult

SHOWN = 20
"""Number of issues of a kind that are printed; the manifest has all."""

VOXELS = re.compile(r"([\d,]+) voxels in ")
OTHER_NAMES_OF_CT = re.compile(r"(?i)(?<![a-z0-9])(?!ct$)(nc|nce|ce|cb|ld|hr)?ct[ap]?(?![a-z])")
"""Channel names such as ``ncct``, ``CTA`` and ``ct_lung``; nnU-Net knows ``CT`` alone."""


def show_plan(plan: ConversionPlan, console: Console) -> None:
    """Centres, their datasets, and what was found; then notes and every problem."""
    in_paper = any(centre_plan.centre.studies is not None for centre_plan in plan.centres)
    table = Table(title="What was found")
    table.add_column("centre and its dataset", overflow="fold")  # names may be longer than the terminal is wide
    for column in ("patients", *(["paper"] if in_paper else []), "cases", "left out", "problems"):
        table.add_column(column, justify="right", no_wrap=True)
    for centre_plan in plan.centres:
        paper = "" if centre_plan.centre.studies is None else str(centre_plan.centre.studies)
        table.add_row(
            f"{centre_plan.centre.name}{' (external)' if centre_plan.centre.external else ''}\n"
            f"{centre_plan.centre.dataset}",
            str(centre_plan.patients),
            *([paper] if in_paper else []),
            str(len(centre_plan.cases)),
            str(len(centre_plan.left_out)),
            str(len(centre_plan.problems)),
        )
    if plan.problems or plan.left_out:
        empty = [""] * (3 if in_paper else 2)
        table.add_row("(no centre)", *empty, str(len(plan.left_out)), str(len(plan.problems)))
    console.print(table)
    for note in (*plan.scan.notes, *_normalisation_notes(plan.scan.channel_names)):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    _show_issues("problem", plan.all_problems, console)
    _show_issues("left out", plan.all_left_out, console)
    differing = [
        centre_plan.centre.name
        for centre_plan in plan.centres
        if centre_plan.centre.studies
        not in (None, centre_plan.patients, len(centre_plan.cases))  # the paper counts either
    ]
    if differing:
        console.print(f"note: not as many patients or cases as in the paper: {', '.join(differing)}", markup=False)


def show_result(
    done: Sequence[ConversionResult],
    new_problems: Sequence[ConversionIssue],
    target: Path,
    dataset: str | None,
    console: Console,
) -> None:
    """Print the datasets as they are now, notes about them, and the command that trains on them.

    Args:
        done: one result per centre.
        new_problems: problems that were found during the conversion, not by the plan.
        target: folder of the datasets.
        dataset: configuration that names the centres; None where there is none.
        console: where to print.
    """
    table = Table(title=f"In {target}")
    table.add_column("dataset", overflow="fold")
    for column in ("cases", "new cases", "skipped", "left out"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in done:
        manifest = entry.manifest
        counts = (len(manifest.cases), entry.converted, len(manifest.skipped), len(manifest.left_out))
        table.add_row(entry.folder.name, *map(str, counts))
    console.print(table)
    _show_issues("skipped", new_problems, console)
    for entry in done:
        cases = entry.manifest.cases
        for note in count_notes({case: record.notes for case, record in cases.items()}):
            console.print(f"note: {entry.centre.name}: {note}", markup=False, soft_wrap=True)
        if len(cases) > 1 and len({record.patient for record in cases.values()}) == 1 and not entry.centre.external:
            what = f"all {len(cases)} cases are of one patient, so that folds hold out a patient that they train on"
            advice = "train with fold=all, or make the centre --external"
            console.print(f"note: {entry.centre.name}: {what}; {advice}", markup=False, soft_wrap=True)
    _show_issues("note", _same_files(done), console)
    console.print(f"\nTrain: {_training_command(done, target, dataset)}", markup=False, soft_wrap=True)


def count_notes(cases: Mapping[str, Sequence[str]]) -> list[str]:
    """Each note once, with the number of cases that have it, the first of them, and the sum of their voxels.

    Args:
        cases: name to its notes; what they have in parentheses at the end concerns a file alone, such as
            ``(20 voxels in FILE)``.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for case, notes in cases.items():
        for note in notes:
            text, _, own = note.partition(" (")
            found.setdefault(text, {}).setdefault(case, []).append(own.removesuffix(")"))
    return [_counted(text, having) for text, having in found.items()]


def _counted(text: str, having: Mapping[str, Sequence[str]]) -> str:
    first, (own, *_) = next(iter(having.items()))
    counted = f"1 case, {first}" if len(having) == 1 else f"{len(having)} cases, the first {first}"
    details = [detail for each in having.values() for detail in each]
    voxels = [int(match[1].replace(",", "")) for detail in details if (match := VOXELS.match(detail))]
    total = f"; {sum(voxels):,} in all" if len(voxels) > 1 else ""
    return f"{counted}: {text}{f' ({own}{total})' if own else ''}"


def _normalisation_notes(channel_names: Sequence[str]) -> list[str]:
    """Channels whose name says that they are CT in a word that nnU-Net does not know."""
    return [
        f"nnU-Net normalises channel {name} like MR, as only the name CT is CT to it; if it is CT, name it CT "
        "(--channel-names CT, or a column image_CT)"
        for name in channel_names
        if OTHER_NAMES_OF_CT.search(name)
    ]


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
    wanted = f"   (when {', '.join(absent[ready])} are there too)" if absent[ready] else ""
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


def _show_issues(what: str, issues: Sequence[ConversionIssue], console: Console) -> None:
    for issue in issues[:SHOWN]:
        console.print(f"{what}: {issue.line}", markup=False, soft_wrap=True)
    if len(issues) > SHOWN:
        console.print(f"{what}: … and {len(issues) - SHOWN} more")


class ConsoleProgress:
    """A bar that shows which case was converted last, and how long the others will take."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("converting"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[case]}"),
            console=console,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, cases: int, remaining: int) -> None:
        """Show ``cases`` in all, of which ``remaining`` have yet to be converted."""
        self._task = self._bar.add_task("convert", total=cases, completed=cases - remaining, case="")

    def advance(self, case: SourceCase) -> None:
        """Count ``case`` as processed."""
        self._bar.update(self._task, advance=1, case=case.name)
