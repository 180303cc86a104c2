"""``fednnunet server status`` on the terminal: server, run, and the nodes page by page."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fednnunet.deployment.certificates import EXPIRES_SOON
from fednnunet.deployment.server.status import AskNodes, NodeStatus, RunState, Status, ask_nodes, read_status
from fednnunet.listing import MOST_NODES, join_first, spread

WATCH_SECONDS = 2.0
QUIET = timedelta(hours=1)
"""Time without a change in an unfinished run after which it is marked."""
MOST_AWAY = 4
"""Nodes that the run waits for, by name, where nodes are many."""


@dataclass(frozen=True)
class View:
    """Which nodes are listed; a page has :data:`~fednnunet.listing.MOST_NODES` of them.

    Attributes:
        page: number of the page, from 1; the last one where there are fewer.
        search: only nodes whose name contains it, in any case.
        failed: only nodes that are offline, or that the run waits for.
    """

    page: int = 1
    search: str = ""
    failed: bool = False


WHOLE = View()


def show_status(
    state: Path, console: Console, watch: bool = False, ask: AskNodes = ask_nodes, view: View = WHOLE
) -> bool:
    """Print the status, once or repeatedly until Ctrl-C; true if the server answered at the end."""
    status = read_status(state, ask)
    if not watch:
        console.print(render(status, datetime.now(UTC), view))
        return status.problem is None
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        try:
            while True:
                live.update(render(status, datetime.now(UTC), view), refresh=True)
                time.sleep(WATCH_SECONDS)
                status = read_status(state, ask)
        except KeyboardInterrupt:
            return status.problem is None


def render(status: Status, now: datetime, view: View = WHOLE) -> RenderableType:
    """The status for the terminal; of many nodes, those that need a look come first."""
    parts: list[RenderableType] = [_server_line(status, now)]
    if status.expires is not None:
        parts.append(_certificate_line(status.expires, now))
    if status.problem is None:
        online = sum(node.online for node in status.nodes)
        parts.append(Text(f"nodes    {online} of {len(status.nodes)} online"))
        if len(status.nodes) > MOST_NODES:
            parts.extend(_spread_lines(status.nodes))
    if status.run is not None:
        parts.extend(_run_lines(status.run, now))
    if status.nodes:
        chosen = _choose_nodes(status, view)
        pages = max(1, math.ceil(len(chosen) / MOST_NODES))
        page = min(view.page, pages)
        shown = chosen[(page - 1) * MOST_NODES : page * MOST_NODES]
        if shown:
            parts.append(_node_table(status, shown, now))
        if pages > 1 or view != WHOLE:
            parts.append(_page_line(len(chosen), page, pages))
    return Group(*parts)


def _choose_nodes(status: Status, view: View) -> list[NodeStatus]:
    """The nodes of all pages: of many, those that are waited for or offline first, then those in the earliest round."""
    waiting = _waited_for(status)

    def needs_look(node: NodeStatus) -> tuple[bool, bool, float, str]:
        # One without a round is as likely an external node as one that is late.
        return node.name not in waiting, node.online, node.progress.round if node.progress else math.inf, node.name

    nodes = [node for node in status.nodes if view.search.lower() in node.name.lower()]
    if view.failed:
        nodes = [node for node in nodes if not node.online or node.name in waiting]
    return sorted(nodes, key=needs_look) if len(status.nodes) > MOST_NODES else nodes


def _waited_for(status: Status) -> list[str]:
    return status.run.waiting_for if status.run is not None and not status.run.finished else []


def _page_line(number: int, page: int, pages: int) -> Text:
    if not number:
        return Text("no such node", style="dim")
    first = (page - 1) * MOST_NODES + 1
    last = min(page * MOST_NODES, number)
    more = f", page {page} of {pages}: --page, --search NAME, --failed" if pages > 1 else ""
    return Text(f"nodes {first} to {last} of {number}{more}", style="dim")


def _spread_lines(nodes: Sequence[NodeStatus]) -> list[Text]:
    """Losses and pseudo-Dice of the newest round that a node has replied to."""
    known = {node.name: node.progress for node in nodes if node.progress is not None}
    newest = max((progress.round for progress in known.values()), default=0)
    in_round = {name: progress for name, progress in known.items() if progress.round == newest}
    if not newest:
        return []
    text = f"         {len(in_round)} have replied to round {newest}"
    scores = spread({name: progress.pseudo_dice for name, progress in in_round.items()}, 3)
    return [Text(f"{text}; pseudo-Dice:"), Text(f"         {scores}")]


def _server_line(status: Status, now: datetime) -> Text:
    server = status.server
    if status.problem is not None:
        return Text(f"server   {status.problem}", style="red")
    up = ago(datetime.fromisoformat(server.started), now)
    how = "TLS and node keys" if server.tls else "plain HTTP, no node keys"
    return Text(f"server   up for {up} at {server.address}, {how}, fednnunet {server.version}")


def _certificate_line(expires: datetime, now: datetime) -> Text:
    days = math.floor((expires - now) / timedelta(days=1))
    if days < 0:
        return Text(f"TLS      the certificate expired on {expires:%Y-%m-%d}: make a new server.crt", style="red")
    style = "yellow" if expires - now < EXPIRES_SOON else ""
    return Text(f"TLS      the certificate is valid for {days} days, until {expires:%Y-%m-%d}", style=style)


def _run_lines(run: RunState, now: datetime) -> list[Text]:
    quiet = ago(run.updated, now)
    where = f"fold {run.fold}, " if run.fold is not None else ""
    stage = f"round {run.round} of {run.rounds}" if run.stage == "train" else f"stage {run.stage}"
    lines = [Text(f"run      {run.strategy} on {run.dataset}, {where}{stage}; {run.run}")]
    if run.finished:
        lines.append(Text(f"         finished {quiet} ago", style="green"))
    elif run.waiting_for:
        most = MOST_NODES if len(run.waiting_for) <= MOST_NODES else MOST_AWAY
        lines.append(Text(f"         waits for {join_first(run.waiting_for, most)}, for {quiet}", style="yellow"))
    else:
        style = "yellow" if now - run.updated > QUIET else ""
        lines.append(Text(f"         last change {quiet} ago", style=style))
    if run.message:
        lines.append(Text(f"         {run.message}", style="dim"))
    return lines


def _node_table(status: Status, nodes: Sequence[NodeStatus], now: datetime) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column("node")
    table.add_column("state")
    for name in ("last seen", "round", "loss", "pseudo-Dice"):
        table.add_column(name, justify="right", no_wrap=True)
    waiting = _waited_for(status)
    for node in nodes:
        state = Text("online", style="green") if node.online else Text("offline", style="red")
        if node.name in waiting:
            state.append(", waited for", style="yellow")
        progress = node.progress
        table.add_row(
            Text(node.name),
            state,
            f"{ago(node.seen, now)} ago" if node.seen is not None else "never",
            str(progress.round) if progress else "",
            _number(progress.train_loss) if progress else "",
            _number(progress.pseudo_dice) if progress else "",
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def ago(then: datetime, now: datetime) -> str:
    """Time from ``then`` to ``now`` in its two largest units, for example ``3 h 20 min``."""
    seconds = max(0, round((now - then).total_seconds()))
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {smaller}"
    return f"{seconds} s"
