"""``fednnunet``: the command for what is done beside training; each subcommand parses, calls, prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fednnunet.cli.convert import convert
from fednnunet.cli.data import data
from fednnunet.cli.deployment import node, server
from fednnunet.errors import FednnUNetError

app = typer.Typer(
    help="What is done beside training (which is `python train.py`).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.add_typer(convert, name="convert")
app.add_typer(data, name="data")
app.add_typer(server, name="server")
app.add_typer(node, name="node")


@app.command()
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


@app.command()
def wandb_dashboard(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Run folders, or folders of sweeps: whose nodes it shows.  [outputs]"),
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


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Takes the files; what is there stays.")],
    server: Annotated[
        list[str], typer.Option(help="Host name or IP address by which nodes reach the server; may be given again.")
    ],
    node: Annotated[list[str] | None, typer.Option(help="Name of a node; may be given again.")] = None,
    days: Annotated[int, typer.Option(help="The server's certificate is valid so long.", min=1)] = 825,
) -> None:
    """Make what a federation across machines needs: a CA, the server's certificate, a key pair for each node."""
    from fednnunet.deployment.keys import make_keys

    made = make_keys(folder, server, node or [], days)
    for path in made.written:
        print(f"made  {path}")
    for path in made.kept:
        print(f"kept  {path}")
    print(
        f"\nTo each node: {folder / 'ca.crt'} and its own node.key. To the server: server.crt, server.key and every "
        f"node.pub.\nKeep {folder / 'ca.key'} offline. The server's certificate expires on {made.expires:%Y-%m-%d}."
    )


def main() -> int:
    """Entry point; 2 when the user has something to fix."""
    try:
        app(standalone_mode=True)
    except FednnUNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
