"""``fednnunet report`` and ``fednnunet wandb-dashboard``: compare runs, here and in Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of sweeps.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables, the figures and report.html.")] = Path(
        "outputs/comparison"
    ),
    reference: Annotated[
        str | None, typer.Option(help="Strategy that the others are tested against.", show_default="local")
    ] = None,
    external: Annotated[
        Literal["mean", "best", "ensemble"],
        typer.Option(
            help="What counts at external centres: the mean over all nodes' models, the model of the node that is "
            "best on its own held-out cases, or the ensemble of all."
        ),
    ] = "mean",
) -> None:
    """Compare runs: tables, tests, figures and one self-contained report.html."""
    from rich.console import Console

    from fednnunet.reporting.finish import compare_runs, find_runs

    compare_runs(out, find_runs(runs), Console(), reference, external)


def wandb_dashboard(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="Run folders, or folders of sweeps: whose nodes it shows.  \\[outputs]"
        ),
    ] = None,
    project: Annotated[str, typer.Option(help="W&B project.")] = "fednnunet",
    entity: Annotated[str | None, typer.Option(help="W&B user or team; the account's default if not given.")] = None,
    sweep: Annotated[str | None, typer.Option(help="Show runs of this sweep only: the name of its folder.")] = None,
    out: Annotated[Path, typer.Option(help="File that takes what is sent, as JSON.")] = Path(
        "outputs/wandb_dashboard.json"
    ),
    offline: Annotated[bool, typer.Option("--offline", help="Write the file, send nothing.")] = False,
) -> None:
    """Build the comparison of runs in Weights & Biases: a workspace and a report."""
    from fednnunet.reporting.finish import find_runs
    from fednnunet.tracking.wandb_dashboard import make_dashboard, metrics_of

    metrics = metrics_of(find_runs(runs or [Path("outputs")]))
    print("\n".join(make_dashboard(metrics, out, entity, project, sweep, offline=offline)))
