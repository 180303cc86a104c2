"""``fednnunet data``: inspect raw datasets before training; each command parses, calls, prints."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fednnunet.config.dataset import CentreConfig, ImageHeaders
from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.datasets.quality.summary import DataIssue
from fednnunet.datasets.raw import DATASET_NAME, RawDataset, find_dataset, list_cases
from fednnunet.datasets.splits import check_splits_file
from fednnunet.errors import ConfigError, DataError

data = typer.Typer(no_args_is_help=True, help="Raw datasets, before training.")


WIDE = 200
"""Width of the tables in characters when they go to a file."""


@data.callback()
def _several_commands() -> None:
    """Keeps ``summary`` a word of its own, while it is the only command."""


@data.command()
def summary(
    datasets: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET...",
            help="A dataset's name in conf/dataset, such as mamamia, for all of its centres; or raw datasets, one per "
            "centre: folders, nnU-Net ids or names DatasetXXX_Name.",
        ),
    ],
    raw_folder: Annotated[
        Path | None,
        typer.Option(help="Where ids and names are looked up, instead of the configuration's folder, or nnUNet_raw."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figure, summary.png and summary.svg.")] = Path(
        "outputs/data"
    ),
    image_headers: Annotated[
        ImageHeaders | None,
        typer.Option(help="Look at them as a run does with this dataset.image_headers; the configuration's, or check."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read images; 0: one per core.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: as JSON, with every case.")] = False,
) -> None:
    """Summarise the images and labels of each centre, and warn of likely training problems.

    Exit code 2: training would stop at something, such as a file that cannot be read.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from fednnunet.datasets.quality.checks import find_issues
    from fednnunet.datasets.quality.console import as_json as to_json
    from fednnunet.datasets.quality.console import show_summary
    from fednnunet.datasets.quality.measure import measure_centre
    from fednnunet.processes import cores
    from fednnunet.reporting.figures import centre_summaries, save_figure

    chosen, missing = choose_centres(datasets, raw_folder)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=sum(len(centre.dataset.cases) for centre in chosen))
        measured = []
        for centre in chosen:
            progress.update(task, description=centre.name)
            processes = min(workers or cores(), len(centre.dataset.cases))
            measured.append(
                measure_centre(
                    centre.dataset,
                    centre.name,
                    centre.external,
                    processes,
                    lambda: progress.advance(task),
                    image_headers or centre.image_headers,
                )
            )
    issues = [*missing, *find_issues(measured)]
    if as_json:
        print(to_json(measured, issues))
    else:
        console = Console(highlight=False)
        # In a file, tables are as wide as they need to be.
        show_summary(measured, issues, console if console.is_terminal else Console(highlight=False, width=WIDE))
    if any(centre.cases for centre in measured):
        save_figure(centre_summaries([centre for centre in measured if centre.cases]), out, "summary")
        if not as_json:
            print(f"figure: {out / 'summary.png'}")
    if any(issue.severity == "bad" for issue in issues):
        raise typer.Exit(2)


@dataclass(frozen=True)
class ChosenCentre:
    """A centre whose cases are looked at."""

    name: str
    external: bool
    dataset: RawDataset
    image_headers: ImageHeaders


def choose_centres(datasets: Sequence[str], raw_folder: Path | None) -> tuple[list[ChosenCentre], list[DataIssue]]:
    """The centres that arguments of the command stand for, and what is wrong with others, or with their own folds.

    Args:
        datasets: names of configurations, or raw datasets.
        raw_folder: where ids and names are looked up; None for the configuration's, or ``nnUNet_raw``.

    Raises:
        ConfigError: an argument is neither; two centres have one name.
        DataError: none of the centres is there.
    """
    chosen: list[ChosenCentre] = []
    missing: list[DataIssue] = []
    for centre, folder, advice, image_headers in _named_centres(datasets, raw_folder):
        try:
            assert centre.dataset is not None, "checked by configured_dataset"
            found = find_dataset(centre.dataset, folder, centre.name)
            name = centre.name if centre.name != centre.dataset else re.sub(r"^Dataset\d{3}_", "", found.name)
            dataset = list_cases(found, name, centre.external)
        except DataError as error:
            missing.append(DataIssue("bad", centre.name, "left out", _without_centre(error), (), 0, advice))
            continue
        if name in {other.name for other in chosen}:
            raise ConfigError(f"there are two centres {name}; look at one dataset at a time")
        chosen.append(ChosenCentre(name, centre.external, dataset, image_headers))
        try:
            if not centre.external:
                check_splits_file(dataset, name)
        except DataError as error:
            advice = "mend the file, or remove it for nnU-Net's folds"
            missing.append(DataIssue("bad", name, "own folds", _without_centre(error), (), 0, advice))
    if not chosen:
        raise DataError(f"centre {missing[0].centre}: {missing[0].found}; {missing[0].advice}")
    return chosen, missing


def _without_centre(error: DataError) -> str:
    return re.sub(r"^centre .*?: ", "", str(error))


def _named_centres(
    datasets: Sequence[str], raw_folder: Path | None
) -> list[tuple[CentreConfig, Path | None, str, ImageHeaders]]:
    """Each centre, where its dataset is looked up, what to do where it is not there, and what its headers mean.

    A raw dataset's centre has its text as name until it is found.
    """
    named: list[tuple[CentreConfig, Path | None, str, ImageHeaders]] = []
    for text in datasets:
        if _is_raw(text):
            centre = CentreConfig.model_construct(name=text, dataset=text)
            named.append((centre, raw_folder, "fix it, or leave it out", "check"))
            continue
        config = configured_dataset(text)
        folder = raw_folder or (Path(config.raw_folder) if config.raw_folder else None)
        makes = f"`python train.py dataset={text}` makes it"
        gets = config.origin or "`fednnunet convert` makes it from what its publishers give"
        advice = makes if config.generator else gets
        named += [(centre, folder, advice, config.image_headers) for centre in config.centres]
    return named


def _is_raw(text: str) -> bool:
    """Whether an argument means a raw dataset: an id, a name ``DatasetXXX_Name`` or a path."""
    return text.isdigit() or os.sep in text or text.startswith(".") or DATASET_NAME.fullmatch(text) is not None
