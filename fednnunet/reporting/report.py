"""One self-contained HTML file: what was run, the table, curves, plans, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from fednnunet.config import POOLED_NODE
from fednnunet.files import write_atomically
from fednnunet.reporting import figures
from fednnunet.reporting.paper import compare_with_paper
from fednnunet.reporting.run_folder import (
    Run,
    brief_plans,
    merge,
    merge_rounds,
    node_order,
    read_runs,
)
from fednnunet.reporting.tables import (
    ONE_EMPTY,
    ResultsTable,
    order_setups,
    own_scores,
    results_table,
    summarise,
)

MOST_LISTED = 20

SETUP_MEANINGS = {
    "local": "every node trains alone on its own plans",
    "asym": "AsymFedAvg: every node keeps its own plans, layers of the same name and shape are averaged",
    "ffe": "federated fingerprint: all nodes train the same plans, all layers are averaged",
    "centralized": "all images pooled in one place; what federation is compared with, not private",
}


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        title: alternative text.
        uri: the image itself.
        width: in pixels, at its natural size.
        readable: smallest width in pixels at which its letters can be read.
    """

    title: str
    uri: str
    width: int
    readable: int


@dataclass(frozen=True)
class PlansOfSetup:
    """Plans of one set-up, side by side.

    Attributes:
        setup: its name.
        nodes: columns.
        rows: property, and its value at each node.
    """

    setup: str
    nodes: list[str]
    rows: list[tuple[str, list[str]]]


def write_report(folder: Path, runs: Sequence[Path]) -> Path:
    """Write ``<folder>/report.html`` and its figures (``<folder>/figures``) over one or several runs.

    What a run lacks is said in the page. The page needs no network and no script.

    Args:
        folder: takes the report.
        runs: run folders.

    Returns:
        Path of the report.

    Raises:
        DataError: a file of a run can not be read; names it.
    """
    path = folder / "report.html"
    write_atomically(path, render_report(folder, read_runs(runs)))
    return path


def results_of(runs: Sequence[Run]) -> ResultsTable | None:
    """Table of results over runs, or None when none of them was scored."""
    scored = [run for run in runs if not run.cases.empty]
    if not scored:
        return None
    training, external = node_order(runs)
    unit = next((run.info["hd95_unit"] for run in scored if "hd95_unit" in run.info), "mm")
    return results_table(summarise(merge([run.cases for run in runs])), training, external, unit)


def render_report(folder: Path, runs: Sequence[Run]) -> str:
    """The page as text; figures are also saved under ``<folder>/figures``."""
    training, external = node_order(runs)
    setups = order_setups(run.setup for run in runs)
    ordered = sorted(runs, key=lambda run: (setups.index(run.setup), run.info.get("seed", 0)))
    saved = folder / "figures"
    cases, rounds = merge([run.cases for run in ordered]), merge_rounds([run.rounds for run in ordered])
    table = results_of(ordered)
    curves = costs = scores = matrix = None
    if not rounds.empty:
        curves = _svg(
            figures.learning_curves(rounds, training),
            saved,
            "learning_curves",
            "Losses and pseudo-Dice over rounds",
        )
        costs = _svg(figures.round_costs(rounds), saved, "round_costs", "Time and traffic of a round")
    if table is not None:
        scores = _svg(
            figures.case_scores(cases, training, external, table.hd95_unit),
            saved,
            "case_scores",
            "DSC and HD95 of every held-out case",
        )
        crossed = figures.cross_centre(cases, training, external)
        if crossed is not None:
            matrix = _svg(crossed, saved, "cross_centre", "DSC of every node's model at every centre")
    environment = Environment(
        loader=PackageLoader("fednnunet.reporting", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_title(ordered),
        facts=_facts(ordered, training, external),
        commands=_distinct(run.info.get("command") for run in ordered),
        meanings={name: SETUP_MEANINGS.get(name.split(" ")[0], "") for name in setups},
        runs=ordered,
        duration=duration,
        problems=[run.problem for run in ordered if run.problem],
        table=table,
        comparison=compare_with_paper(table, ordered) if table is not None else None,
        empty_masks=_empty_masks(cases) if table is not None else [],
        curves=curves,
        scores=scores,
        matrix=matrix,
        costs=costs,
        plans=[plans for run in _one_a_setup(ordered) if (plans := _plans(run, training)) is not None],
        overlays=_overlays(ordered, [*training, *external], saved),
        several_seeds="seed" in cases.columns,
    )


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _title(runs: Sequence[Run]) -> str:
    datasets = _distinct(run.info.get("dataset") for run in runs)
    setups = order_setups(run.setup for run in runs)
    names = setups[0] if len(setups) == 1 else f"{', '.join(setups[:-1])} and {setups[-1]}"
    return f"{names} on {', '.join(datasets)}" if datasets else names


def _facts(runs: Sequence[Run], training: Sequence[str], external: Sequence[str]) -> list[tuple[str, str]]:
    counts = {node: number for run in runs for node, number in run.info.get("num_training", {}).items()}
    nodes = [f"{node} ({counts[node]} cases)" if node in counts else node for node in training]

    def values(key: str, show: Callable[[Any], str] = str) -> str:
        return ", ".join(_distinct(show(run.info[key]) for run in runs if run.info.get(key) is not None))

    seconds = [run.info["seconds"] for run in runs if "seconds" in run.info]
    versions = {name: number for run in runs for name, number in run.info.get("versions", {}).items()}
    facts = [
        ("Dataset", values("dataset")),
        ("Configuration", values("configuration")),
        ("Training nodes", ", ".join(nodes)),
        ("External nodes", ", ".join(external)),
        ("Rounds × iterations", " × ".join(filter(None, (values("rounds"), values("iterations"))))),
        ("Fold", values("fold", lambda fold: ", ".join(map(str, fold)) if isinstance(fold, list) else str(fold))),
        ("Seed", values("seed")),
        ("Started", min((_moment(run.info["started"]) for run in runs if "started" in run.info), default="")),
        ("Duration", duration(sum(seconds)) if seconds else ""),
        ("Peak memory", values("peak_memory_gib", lambda gib: f"{gib:.1f} GiB") if len(runs) == 1 else ""),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]
    return [(name, value) for name, value in facts if value]


def _moment(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z").strip()


def _empty_masks(cases: pd.DataFrame) -> list[tuple[str, str]]:
    """Set-up, and its cases in which just one of prediction and reference is empty."""
    lists = []
    for setup, rows in own_scores(cases).groupby("strategy", sort=False):
        affected = rows[rows["empty"].isin(ONE_EMPTY)]
        names = [f"{row.node} {row.case} ({row.label}: empty {row.empty})" for row in affected.itertuples()]
        if names:
            more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
            lists.append((str(setup), f"{', '.join(names[:MOST_LISTED])}{more}"))
    return lists


def _plans(run: Run, order: Sequence[str]) -> PlansOfSetup | None:
    if not run.plans:
        return None
    configuration = str(run.info.get("configuration", "2d"))
    nodes = sorted(run.plans, key=lambda node: order.index(node) if node in order else len(order))
    briefs = {node: brief_plans(run.plans[node], configuration) for node in nodes}
    shared = run.info.get("shared_fraction", {})
    titles = {
        "batch_size": "batch size",
        "patch_size": "patch (pixels)",
        "spacing": "spacing (mm)",
        "n_stages": "stages",
        "features_per_stage": "features",
    }
    rows = [(title, [_plan_value(briefs[node][key]) for node in briefs]) for key, title in titles.items()]
    if any(shared.values()):
        averaged = [f"{shared[node]:.0%}" if node in shared else "–" for node in briefs]
        rows.append(("parameters averaged", averaged))
    return PlansOfSetup(run.setup, ["all nodes pooled" if n == POOLED_NODE else n for n in briefs], rows)


def _plan_value(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    if len(value) > 3:
        return f"{value[0]} … {value[-1]}"
    return " × ".join(f"{number:g}" for number in value)


def _overlays(runs: Sequence[Run], nodes: Sequence[str], saved: Path) -> dict[str, Picture]:
    """For each node the case that most set-ups pictured; set-ups side by side."""
    pictures = {}
    firsts = [run for run in _one_a_setup(runs) if run.overlays]
    for node in nodes:
        numbers = [case for run in firsts for case in run.overlays.get(node, {})]
        if not numbers:
            continue
        chosen = max(sorted(set(numbers)), key=numbers.count)
        slices = {run.setup: run.overlays[node][chosen] for run in firsts if chosen in run.overlays.get(node, {})}
        figure = figures.overlay_row(node, slices)
        name = f"overlay_{''.join(c if c.isalnum() else '_' for c in node)}"
        png, _ = figures.save_figure(figure, saved, name)
        title = f"{node}, held-out case {chosen}: reference and prediction"
        pictures[node] = _picture(title, figures.as_data_uri(png, "image/png"), figure)
    return pictures


def _svg(figure: Figure, saved: Path, name: str, title: str) -> Picture:
    _, svg = figures.save_figure(figure, saved, name)
    return _picture(title, figures.as_data_uri(svg, "image/svg+xml"), figure)


def _picture(title: str, uri: str, figure: Figure) -> Picture:
    inches = figure.get_size_inches()[0]
    return Picture(title, uri, width=round(105 * inches), readable=round(min(66 * inches, 760)))


def _one_a_setup(runs: Sequence[Run]) -> list[Run]:
    """The first finished run of each set-up, or its first one."""
    chosen: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: not run.finished):
        chosen.setdefault(run.setup, run)
    return [chosen[name] for name in order_setups(run.setup for run in runs)]


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))
