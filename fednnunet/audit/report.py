"""``fednnunet node audit``: show what left a node; :mod:`fednnunet.audit.reader` reads the log."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from fednnunet.audit.log import EXPANDED_FIELDS, Entry
from fednnunet.audit.reader import Group, Summary, Trail, read_trail, summarise
from fednnunet.exchange.messages import MIN_CASES, Kind
from fednnunet.privacy.ledger import LEDGER, Cost, Ledger, costs_of

WHAT = {
    Kind.FINGERPRINT: "Description of the data",
    Kind.PLAN: "Plan of the network",
    Kind.PREPROCESS: "Counts after preprocessing",
    Kind.TRAIN: "Figures of training",
    Kind.UNMASK: "Shares that open sums over nodes",
    Kind.EVALUATE: "Scores of segmentations",
    Kind.SEND_MODEL: "Final models",
    Kind.KEEP_MODEL: "Receipts of other nodes' models",
    Kind.SCORE_MODELS: "Scores of other nodes' models",
}


def show_audit(paths: Sequence[Path], console: Console, *, entries: bool, as_json: bool) -> bool:
    """Print what the logs say.

    Args:
        paths: files of the logs.
        console: where to print.
        entries: also print one line per reply.
        as_json: print a list of objects, one per log, instead of text.

    Returns:
        Whether every chain is unbroken and nothing unexpected left.

    Raises:
        ConfigError: a ledger of what noise has cost was changed.
    """
    trails = [read_trail(path) for path in paths]
    summaries = [summarise(trail.entries) for trail in trails]
    costs = [costs_of(Ledger(path.with_name(LEDGER)).read()) for path in paths]
    if as_json:
        objects = [
            {**_as_dict(trail, summary, entries), "noise": [dataclasses.asdict(cost) for cost in cost_of_node]}
            for trail, summary, cost_of_node in zip(trails, summaries, costs, strict=True)
        ]
        console.print(json.dumps(objects, indent=1), soft_wrap=True, highlight=False, markup=False)
    else:
        for trail, summary, cost_of_node in zip(trails, summaries, costs, strict=True):
            _show(trail, summary, cost_of_node, console, entries)
    return not any(trail.breaks for trail in trails) and not any(summary.unexpected for summary in summaries)


def _as_dict(trail: Trail, summary: Summary, entries: bool) -> dict[str, Any]:
    lines = {"lines": [entry.model_dump(mode="json", exclude_defaults=True) for entry in trail.entries]}
    return {
        "path": str(trail.path),
        "nodes": _nodes(trail),
        "entries": len(trail.entries),
        "unbroken": not trail.breaks,
        "breaks": trail.breaks,
        "torn": trail.torn,
        "head": trail.head,
        **dataclasses.asdict(summary),
        **(lines if entries else {}),
    }


def _nodes(trail: Trail) -> list[str]:
    return list(dict.fromkeys(entry.node for entry in trail.entries))


def _show(trail: Trail, summary: Summary, costs: Sequence[Cost], console: Console, entries: bool) -> None:
    console.print(f"\n[bold]What left node {escape(', '.join(_nodes(trail)) or '?')}[/bold]", highlight=False)
    console.print(str(trail.path), style="dim", soft_wrap=True, highlight=False, markup=False)
    for run in dict.fromkeys(group.run for group in summary.groups):
        console.print(_table(run, [group for group in summary.groups if group.run == run]))
    if entries:
        for entry in trail.entries:
            console.print(entry_line(entry), soft_wrap=True, highlight=False, markup=False)
        console.print()
    for sentence in [*sentences(summary), *map(cost_sentence, costs)]:
        console.print(f"• {sentence}", soft_wrap=True, highlight=False, markup=False)
    for found in summary.unexpected:
        console.print(f"! unexpected: {found}", style="bold red", soft_wrap=True, highlight=False, markup=False)
    if trail.torn:
        console.print(f"• The last line is torn ({trail.torn} bytes): what it tells of has not left.", soft_wrap=True)
    for broken in trail.breaks:
        console.print(f"! chain broken: {broken}", style="bold red", soft_wrap=True, highlight=False, markup=False)
    if not trail.breaks:
        head = f"; digest of the last: {trail.head}" if trail.head else ""
        console.print(f"• Chain: unbroken, {len(trail.entries)} entries{head}", soft_wrap=True, highlight=False)


def _table(run: str | None, groups: Sequence[Group]) -> Table:
    title = f"run {escape(run)}" if run else None
    table = Table(box=None, title=title, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("message", "replies", "failed", "tensors", "size", "first (UTC)", "last (UTC)"):
        table.add_column(name, justify="right" if name in ("replies", "failed", "tensors", "size") else "left")
    for group in groups:
        counts = (f"{count:,}" for count in (group.replies, group.failures, group.tensors))
        name = group.kind.value.rpartition(".")[2]
        table.add_row(name, *counts, decimal(group.bytes), _minute(group.first), _minute(group.last))
    return table


def sentences(summary: Summary) -> list[str]:
    """What left, in plain words."""
    lines = []
    for kind, what in WHAT.items():
        replies = sum(group.replies - group.failures for group in summary.groups if group.kind is kind)
        if not replies:
            continue
        listed = [_field(name, numbers) for name, numbers in summary.fields[kind].items()]
        lines.append(f"{what}, {replies} ×: {', '.join(listed)}.")
    if summary.scores:
        lines.append(f"Rows of scores: {summary.scores:,}; cases are numbers in them, not names.")
    if summary.means:
        lines.append(f"Means of scores: {summary.means:,}, each over at least {MIN_CASES} cases.")
    if summary.digests:
        lines.append(
            f"Salted digests of images: {summary.digests:,}; the server can test with them whether the node holds an "
            "image that it has itself."
        )
    lines += [f"Text of an error: {reason}" for reason in summary.reasons]
    if summary.tensors:
        whole = summary.tensors - summary.uncompared - summary.steps
        if not summary.unexpected and whole:
            each = f"{whole:,} of them have" if whole < summary.tensors else "Each has"
            lines.append(
                f"Tensors: {summary.tensors:,}. {each} the name and the shape of a layer of the network that the node "
                "planned."
            )
        if summary.steps:
            lines.append(
                f"Tensors that are steps: {summary.steps:,}. Each has the name of a layer of that network and no more "
                "bytes than its step needs: scales, and how far the layer's values are from those that the server had "
                "sent, in 8 or 4 bits. With both the server knows the layer, to this precision."
            )
        if summary.uncompared:
            lines.append(
                f"Tensors that cannot be compared, as the log has no plan before them: {summary.uncompared:,}."
            )
    if summary.masked:
        lines.append(
            f"Masked tensors: {summary.masked:,}. The server learns sums of them, which this node has helped to open "
            f"over at least {summary.fewest} nodes; this node's own layers and figures of training it does not learn."
        )
    if summary.initial:
        lines.append(
            f"Tensors as they were before the first round, initialised or from init.weights: {summary.initial:,}."
        )
    if summary.clear:
        lines.append(f"Tensors in clear, each of which the server sees as it is: {summary.clear:,}.")
    if summary.largest is not None:
        lines.append(f"The largest single thing beside tensors: {summary.largest}, {summary.largest_bytes:,} bytes.")
    if summary.withheld:
        lines.append(f"Replies kept back because this log could not be written: {summary.withheld:,}.")
    return lines


def cost_sentence(cost: Cost) -> str:
    """What noise has cost, in plain words."""
    return (
        f"Noise that hides each {cost.hides}, in {cost.rounds:,} rounds of {cost.runs:,} runs: epsilon is "
        f"{cost.epsilon:.2f} so far, at delta {cost.delta:.1g}."
    )


def _field(name: str, numbers: int) -> str:
    if numbers == 0 or (numbers == 1 and not name.startswith(EXPANDED_FIELDS)):
        return name
    return f"{name} ({numbers:,} {'number' if numbers == 1 else 'numbers'})"


def entry_line(entry: Entry) -> str:
    """One line about one reply."""
    asked = ", ".join(f"{name} {value}" for name, value in entry.asked.items())
    end = f"failed: {entry.reason}" if not entry.ok else f"{len(entry.tensors)} tensors, {decimal(entry.bytes)}"
    counts = {"scores": entry.scores, "means": entry.means}
    scores = "".join(f", {number} {what}" for what, number in counts.items() if number)
    return f"{entry.time[:19]}  {entry.kind.value}  ({asked})  {end}{scores}"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
