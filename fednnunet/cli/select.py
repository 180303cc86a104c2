"""``fednnunet select``: what each hospital chooses among the models that were trained for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fednnunet.errors import ConfigError
from fednnunet.listing import MOST_NODES


def select(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or folders of sweeps; at a hospital its own folders of runs, each as NAME=FOLDER.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for selection.csv, .json, .md and the figure.")] = Path(
        "outputs/selection"
    ),
    default: Annotated[
        str | None,
        typer.Option(
            help="What a hospital takes that cannot choose: one fold, or fewer than five cases in the other folds.",
            show_default="the simplest candidate that is not local",
        ),
    ] = None,
    average: Annotated[
        bool,
        typer.Option(
            "--average",
            help="Also average the hospital's own model with each other one. Without trainer.save_probabilities=true "
            "held-out cases are segmented again.",
        ),
    ] = False,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble",
            help="As --average, and also average all hospitals' models, where these are on this disk.",
        ),
    ] = False,
    standard_errors: Annotated[
        float,
        typer.Option(
            min=0, help="Differences within so many standard errors are noise, and go to the simpler candidate."
        ),
    ] = 1.0,
) -> None:
    """Choose a model for each hospital by its held-out cases: simplest within noise of the best; scored honestly."""
    from rich.console import Console
    from rich.table import Table

    from fednnunet.cli.writable import check_folder
    from fednnunet.selection.arguments import read_sources
    from fednnunet.selection.choose import choose_models
    from fednnunet.selection.written import export_commands, losing, table_rows, write_selection

    check_folder(out)
    console, sources = Console(), read_sources(runs)
    if average or ensemble:
        from fednnunet.selection.averaged import with_averages

        sources = with_averages(sources, ensemble, lambda what: console.print(f"averaging: {what}", highlight=False))
    chosen = choose_models(sources, default, standard_errors)
    try:
        write_selection(out, chosen)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from None
    many = len(chosen.selections.of_node) > MOST_NODES
    titles, rows = table_rows(chosen, losing(chosen) if many else None)
    if rows:
        table = Table(*titles, show_edge=False, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row)
        wide = console if console.is_terminal else Console(width=500)
        wide.print(table, highlight=False)
        console.print()
    sentences = [] if chosen.gains is None else chosen.gains.sentences()
    for line in (*sentences, *chosen.selections.notes):
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)
    if commands := export_commands(chosen, out):
        console.print("\nto hand over, or one hospital's choice with --node:")
        for command in commands:
            console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"\nwritten: {os.path.relpath(out)}", soft_wrap=True, highlight=False)
