"""What the terminal shows of a run: live lines on a terminal, a dozen plain ones in a log.

Nodes have a line each up to :data:`~fednnunet.listing.MOST_NODES`; of more it shows how many have come how far.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fednnunet.exchange.messages import Fold
from fednnunet.listing import MOST_NODES, join_first, spread
from fednnunet.server.run_observer import RunObserver

PLAIN_ROUND_LINES = 7
"""Number of lines about rounds where the output is no terminal."""

_STATES = {
    "start": "starting",
    "fingerprint": "fingerprint",
    "plan": "planning",
    "preprocess": "preprocessing",
    "train": "training",
    "evaluate": "scoring",
    "fine_tune": "fine-tuning alone, and scoring",
    "external": "external centres score",
}


_TRAINING_STAGES = ("plan", "preprocess", "train")
"""Stages in which external nodes have nothing to do."""
_MOST_AWAY = 4
"""Nodes that are away, by name, where nodes have no line of their own."""


@dataclass
class _Line:
    state: str = "waiting"
    epoch: int = 0
    loss: float | None = None
    pseudo_dice: float | None = None


class RunProgress(RunObserver):
    """Shows one run; a context manager. Its methods may be called from several threads.

    Args:
        title: name of the strategy, or of a sweep's job.
        nodes: names of the nodes; others that appear get a line too.
        console: where to write; standard output if None.
        external: those of ``nodes`` that do not train.
        folds: folds that the run trains, one after another.
    """

    def __init__(
        self,
        title: str,
        nodes: Sequence[str],
        console: Console | None = None,
        external: Sequence[str] = (),
        folds: Sequence[Fold] = (0,),
    ) -> None:
        self._name = self._title = title
        self._rounds = 0
        self._folds = folds
        self._console = console or Console()
        self._live = Live(self, console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._lines = {node: _Line() for node in nodes}
        self._external = frozenset(external)
        self._lock = threading.RLock()
        self._stage = ""
        self._round = 0
        self._done = 0
        self._first_round = 1
        self._mean_dice: float | None = None
        self._slowest = ""
        self._begin = time.monotonic()
        self._train_begin = self._begin

    def __enter__(self) -> Self:
        self._begin = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with self._lock:
                for line in self._lines.values():
                    line.state = "stopped" if kind is not None else "done"
            self._live.stop()
        elif kind is None:
            self._print_line(f"done in {_clock(time.monotonic() - self._begin)}")

    def on_stage(self, stage: str) -> None:
        """Show the stage at every node; ``start`` before the first."""
        with self._lock:
            self._stage = stage
            state = _STATES.get(stage, stage)
            for node, line in self._lines.items():
                line.state = "waiting" if node in self._external and stage in _TRAINING_STAGES else state
            if self._live is None and stage != "start":
                self._print_line(f"{state}: {self._rounds} rounds" if stage == "train" else state)
            self._train_begin = time.monotonic()

    def on_fold_start(self, fold: Fold, rounds: int, finished: int) -> None:
        """Start every node's line anew; with several folds, the title names this one."""
        with self._lock:
            if len(self._folds) > 1:
                self._title = f"{self._name} fold {fold}"
            self._rounds, self._round, self._done = rounds, 0, finished
            for line in self._lines.values():
                line.epoch, line.loss, line.pseudo_dice = finished, None, None

    def on_node_reply(self, node: str, server_round: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """Show that the node is done with the stage or round, and a round's ``train_loss`` and ``pseudo_dice``."""
        with self._lock:
            if server_round and server_round != self._round:
                self._start_round(server_round)
            line = self._lines.setdefault(node, _Line())
            line.state = "waiting" if server_round else f"{_STATES.get(self._stage, self._stage)} done"
            if server_round:
                line.epoch = server_round
                line.loss = (metrics or {}).get("train_loss")
                line.pseudo_dice = (metrics or {}).get("pseudo_dice")

    def _start_round(self, server_round: int) -> None:
        if self._round == 0:
            self._first_round = server_round
        self._round = server_round
        for node, line in self._lines.items():
            if line.state == "waiting" and node not in self._external:
                line.state = "training"

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show that all nodes train the next round; in a log, print a line about some rounds."""
        with self._lock:
            self._done = server_round
            self._slowest = _slowest_of(rows)
            for node, line in self._lines.items():
                if line.state == "waiting" and server_round < self._rounds and node not in self._external:
                    line.state = "training"
            step = math.ceil(self._rounds / PLAIN_ROUND_LINES)
            if self._live is None and (server_round % step == 0 or server_round == self._rounds):
                scores = self._scores(server_round) or f"{_number(self._mean_dice, 2)} (mean of the nodes)"
                left = f"  {_clock(self._seconds_left())} left" if server_round < self._rounds else ""
                self._print_line(f"round {server_round}/{self._rounds}  pseudo-Dice  {scores}{left}")

    def _scores(self, server_round: int) -> str:
        """Pseudo-Dice of the nodes that were in the round; empty where it is not known."""
        known = {
            node: line.pseudo_dice
            for node, line in self._lines.items()
            if line.epoch == server_round and line.pseudo_dice is not None
        }
        if len(self._lines) <= MOST_NODES or not known:
            return "  ".join(f"{node} {_number(value, 2)}" for node, value in known.items())
        slowest = f"; slowest: {self._slowest}" if self._slowest else ""
        return f"{spread(known, 2)}{slowest}"

    def on_round_means(self, server_round: int, means: Mapping[str, float | None]) -> None:
        """Keep the mean of the nodes' pseudo-Dice for the line about the round; theirs are not known."""
        with self._lock:
            self._mean_dice = means.get("pseudo_dice")

    def on_waiting(self, nodes: Collection[str]) -> None:
        """Show which nodes are away."""
        with self._lock:
            for node, line in self._lines.items():
                if node in nodes:
                    line.state = "away"
                elif line.state == "away":
                    line.state = _STATES.get(self._stage, self._stage)

    def on_message(self, text: str) -> None:
        """Print a line that stays on the screen."""
        with self._lock:
            if self._live is None:
                self._print_line(text)
            else:
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __rich__(self) -> RenderableType:
        """The live lines."""
        with self._lock:
            nodes = self._node_lines() if len(self._lines) <= MOST_NODES else self._summary_lines()
            return Group(nodes, self._round_line())

    def _node_lines(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "right", "right", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)
        left = _clock(self._seconds_left()) if self._stage == "train" and self._seconds_left() else ""
        for node, line in self._lines.items():
            known = line.epoch > 0
            table.add_row(
                Text(f"  {node}", style="bold"),
                Text(line.state, style="dim" if line.state.endswith(("waiting", "done")) else "cyan"),
                f"epoch {line.epoch}/{self._rounds}" if known else "",
                f"loss {_number(line.loss, 3)}" if known else "",
                f"pseudo-Dice {_number(line.pseudo_dice, 3)}" if known else "",
                Text(f"{left} left" if left and known and line.epoch < self._rounds else "", style="dim"),
            )
        return table

    def _summary_lines(self) -> Table:
        """How many nodes are where, and the spread of their figures."""
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="ellipsis", no_wrap=True)
        asked = {
            node: line.state
            for node, line in self._lines.items()
            if not (node in self._external and self._stage in _TRAINING_STAGES)
        }
        replied = sum(state.endswith(("waiting", "done")) for state in asked.values())
        stage = _STATES.get(self._stage, self._stage)
        table.add_row("  nodes", f"{replied} of {len(asked)} done" + (f" with {stage}" if stage else ""))
        away = [node for node, state in asked.items() if state == "away"]
        if away:
            names = join_first(away, _MOST_AWAY)
            table.add_row("  away", Text(f"{len(away)}: {names}", style="yellow"))
        if self._round:
            of_round = {node: line for node, line in self._lines.items() if line.epoch == self._round}
            table.add_row("  loss", spread({node: line.loss for node, line in of_round.items()}, 3))
            table.add_row("  pseudo-Dice", spread({node: line.pseudo_dice for node, line in of_round.items()}, 3))
        if self._slowest:
            left = self._seconds_left()
            table.add_row("  slowest", self._slowest + (f"; {_clock(left)} left" if left else ""))
        return table

    def _round_line(self) -> Table:
        table = Table.grid(padding=(0, 2))
        stage = _STATES.get(self._stage, self._stage)
        at = f"round {self._done}/{self._rounds}" if self._done else stage
        if self._mean_dice is not None:
            at += f"  mean pseudo-Dice {_number(self._mean_dice, 3)}"
        table.add_row(
            Text(self._title, style="bold cyan"),
            at,
            ProgressBar(total=max(self._rounds, 1), completed=self._done, width=32),
            Text(_clock(time.monotonic() - self._begin), style="dim"),
        )
        return table

    def _seconds_left(self) -> float:
        finished = self._done - self._first_round + 1
        if self._done == 0 or finished <= 0:
            return 0.0
        return (time.monotonic() - self._train_begin) / finished * (self._rounds - self._done)

    def _print_line(self, text: str) -> None:
        clock = _clock(time.monotonic() - self._begin)
        self._console.print(f"{self._title}  {clock:>5}  {text}", highlight=False, markup=False, soft_wrap=True)
        self._console.file.flush()


def _slowest_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The node that a round has waited for longest, and its time; empty where times are not known."""
    seconds = {
        str(row["node"]): float(row["seconds_train"]) + float(row.get("seconds_exchange") or 0)
        for row in rows
        if row.get("seconds_train") is not None
    }
    if not seconds:
        return ""
    node = max(seconds, key=seconds.__getitem__)
    return f"{node}, {_clock(seconds[node])} in round {rows[0]['round']}" if "round" in rows[0] else node


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
