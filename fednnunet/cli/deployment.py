"""``fednnunet server`` and ``fednnunet node``: each command parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednnunet.errors import ConfigError

server = typer.Typer(no_args_is_help=True, help="The server of a federation across machines.")
node = typer.Typer(no_args_is_help=True, help="A hospital's node in a federation across machines.")

State = Annotated[Path, typer.Option("--state", help="Folder of the server's state, which `server up` creates.")]
STATE = Path("server")


@server.command("up")
def server_up(
    keys: Annotated[Path | None, typer.Argument(help="Folder that `fednnunet keys` made.")] = None,
    address: Annotated[str, typer.Option(help="host:port that nodes connect to; 0.0.0.0:9092 for all networks.")] = (
        "127.0.0.1:9092"
    ),
    state: State = STATE,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS and node keys; on this machine only.")
    ] = False,
) -> None:
    """Start the server, and keep it alive; Ctrl-C ends it."""
    from fednnunet.deployment.server.supervisor import serve

    serve(keys, address, state, insecure)


@server.command("status")
def server_status(
    state: State = STATE,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it; Ctrl-C ends it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: once, all nodes, as JSON.")] = False,
    page: Annotated[int, typer.Option(min=1, help="Page of the nodes; those that need a look are on the first.")] = 1,
    search: Annotated[str, typer.Option(metavar="NAME", help="Only nodes whose name contains this.")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="Only nodes that are offline or waited for.")] = False,
) -> None:
    """Show the server, its nodes and the run; exit code 2 if the server does not answer."""
    from rich.console import Console

    from fednnunet.deployment.server import status, status_screen

    view = status_screen.View(page, search, failed)
    if watch and as_json:
        raise ConfigError("--watch shows a screen, --json is printed once: choose one of them")
    if as_json and view != status_screen.WHOLE:
        raise ConfigError("--json has all nodes; leave out --page, --search and --failed")
    if as_json:
        now = status.read_status(state)
        print(status.as_json(now))
        answered = now.problem is None
    else:
        answered = status_screen.show_status(state, Console(highlight=False), watch, view=view)
    if not answered:
        raise typer.Exit(2)


@node.command("up")
def node_up(config: Annotated[Path, typer.Argument(help="The node's YAML file; see deploy/node.yaml.")]) -> None:
    """Join the federation, and keep worker and connection alive; Ctrl-C ends it."""
    from fednnunet.config.node_file import read_node_file
    from fednnunet.deployment.node.supervisor import serve

    serve(read_node_file(config))


@node.command("audit")
def node_audit(
    path: Annotated[Path, typer.Argument(help="A node's audit.jsonl, its folder, its YAML file, or a run's folder.")],
    entries: Annotated[bool, typer.Option("--entries", help="Also one line per reply.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the data that left a node, and check that its log is complete.

    Exit code 2: lines were changed or removed, or data left that are no layer of the node's plans.
    """
    from rich.console import Console

    from fednnunet.audit.reader import find_logs
    from fednnunet.audit.report import show_audit

    if not show_audit(find_logs(path), Console(), entries=entries, as_json=as_json):
        raise typer.Exit(2)


@node.command("check")
def node_check(
    config: Annotated[Path, typer.Argument(help="The node's YAML file; see deploy/node.yaml.")],
    quick: Annotated[bool, typer.Option("--quick", help="Open one case instead of all.")] = False,
) -> None:
    """Test what the node needs before it joins; exit code 2 if something must be fixed."""
    from rich.console import Console

    from fednnunet.deployment.node.preflight.checks import check_node
    from fednnunet.deployment.node.preflight.results import show_results

    console = Console(highlight=False)
    with console.status("testing …") as status:
        results = check_node(config, quick, lambda done, of: status.update(f"opening cases: {done} of {of}"))
        if not show_results(results, console):
            raise typer.Exit(2)
