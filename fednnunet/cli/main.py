"""``fednnunet``: the command; each subcommand parses, calls, prints."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import click
import typer

from fednnunet.cli.deployment import node, server
from fednnunet.cli.export import export
from fednnunet.cli.find_best import find_best
from fednnunet.cli.predict import predict
from fednnunet.cli.report import report, wandb_dashboard
from fednnunet.cli.select import select
from fednnunet.errors import FednnUNetError
from fednnunet.plain_output import write_plainer
from fednnunet.processes import shorten_temp_folder

READ_IMAGES = ("convert", "data")
"""Commands whose modules import what reads images."""


class Commands(typer.core.TyperGroup):
    """All commands; those of :data:`READ_IMAGES` are imported when they are asked for.

    Servers and nodes are started without them, and each process that they spawn imports this module again.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        return [*super().list_commands(ctx), *READ_IMAGES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None where there is none."""
        if cmd_name in READ_IMAGES:
            group = typer.main.get_group(getattr(import_module(f"fednnunet.cli.{cmd_name}"), cmd_name))
            group.name = cmd_name
            return group
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    cls=Commands,
    help="FednnU-Net trains nnU-Net across hospitals without moving an image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context) -> None:
    """Train: takes Hydra's overrides and flags, as `python train.py` does; --help lists them."""
    from fednnunet.cli.train import launch

    raise typer.Exit(launch(["fednnunet", "train"], context.args))


app.command()(predict)
app.command()(report)
app.command()(select)
app.command()(export)
app.command("wandb-dashboard")(wandb_dashboard)
app.command("find-best")(find_best)
app.add_typer(server, name="server")
app.add_typer(node, name="node")


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; existing files stay.")],
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name or IP address by which nodes reach the server; can be repeated; not needed to add a node."
        ),
    ] = None,
    node: Annotated[list[str] | None, typer.Option(help="Name of a node; can be repeated.")] = None,
    days: Annotated[int, typer.Option(help="Days that the server's certificate is valid.", min=1)] = 825,
) -> None:
    """Make what a federation across machines needs: a CA, the server's certificate, each node's keys."""
    from fednnunet.deployment.keys import make_keys

    made = make_keys(folder, server or [], node or [], days)
    for path in made.written:
        print(f"made  {path}")
    for path in made.kept:
        print(f"kept  {path}")
    expiry = f" The server's certificate expires on {made.expires:%Y-%m-%d}." if made.expires is not None else ""
    print(
        f"\nTo each node: {folder / 'ca.crt'}, its own node.key and node.crt. To the server: server.crt, server.key "
        f"and every node.pub.\nKeep {folder / 'ca.key'} offline.{expiry}"
    )
    if made.uncertified:
        print(
            f"note: no node.crt for {', '.join(made.uncertified)}, as ca.key is not there; secure sums "
            "(privacy=secure) need it: fetch ca.key, and call this again"
        )


def main() -> int:
    """Entry point; 2 when the user has something to fix."""
    write_plainer()
    try:
        if change := shorten_temp_folder():
            print(f"note: {change}", file=sys.stderr)
        app(standalone_mode=True)
    except FednnUNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
