"""One self-contained HTML file: what was run, results table, curves, plans, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from fednnunet.evaluation.statistics import show_p_value
from fednnunet.files import write_atomically
from fednnunet.listing import MOST_NODES, join_first
from fednnunet.reporting import figures
from fednnunet.reporting.annotation import annotation_tables
from fednnunet.reporting.case_selection import ShownCase, choose_cases, choose_nodes
from fednnunet.reporting.comparison import ALL_CENTRES, LEVEL, show_points
from fednnunet.reporting.figures.overlays import Overlay, show_dsc
from fednnunet.reporting.gains import draw_gains
from fednnunet.reporting.plans import collect_plans
from fednnunet.reporting.privacy import statements_of
from fednnunet.reporting.results import Results
from fednnunet.reporting.run_folder import Run, merge_rounds
from fednnunet.reporting.scores import over_labels
from fednnunet.reporting.tables.overview import node_rows, node_titles, overview
from fednnunet.reporting.tables.results_table import ONE_EMPTY, STAR, order_strategies, own_scores
from fednnunet.run_files import CHANNEL_COLUMNS, REPORT_FILE

OVERLAY = "overlay"
"""Prefix of the names of figures that show images."""
MOST_LISTED = 20
SCRIPT = Path(__file__).parent / "node_tables.js"
"""Searches and sorts tables of many nodes; the page can be read without it."""

STRATEGY_MEANINGS = {
    "local": "every node trains alone on its own plans",
    "asym": "AsymFedAvg: every node keeps its own plans, layers of the same name and shape are averaged",
    "ffe": "federated fingerprint: all nodes train the same plans, all layers are averaged",
    "ditto": "as ffe, and beside the shared network one of each node's own, tied to the averages (Ditto)",
    "ditto_asym": "as asym, and beside the shared network one of each node's own, tied to the averages (Ditto)",
    "centralized": "all images pooled in one place; the reference for federation, not private",
}


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        title: alternative text.
        uri: the image as data URI.
        width: natural width in pixels.
        min_width: smallest width in pixels at which its text can be read.
    """

    title: str
    uri: str
    width: int
    min_width: int


def write_report(folder: Path, results: Results) -> Path:
    """Write ``<folder>/report.html`` and its figures (``<folder>/figures``) over one or several runs.

    The page says what a run lacks. It needs no network and no script; that of many nodes has one of its own, which
    searches and sorts their tables.

    Args:
        folder: folder for the report.
        results: results of the runs.

    Returns:
        Path of the report.

    Raises:
        DataError: plans or a picture of a run cannot be read; names the file.
    """
    path = folder / REPORT_FILE
    write_atomically(path, render_report(folder, results))
    return path


def render_report(folder: Path, results: Results) -> str:
    """The page as text; figures are also saved under ``<folder>/figures``."""
    runs, training, external = results.runs, results.training, results.external
    strategies = order_strategies(run.strategy for run in runs)
    environment = Environment(
        loader=PackageLoader("fednnunet.reporting", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": show_points, "p_value": show_p_value, "dsc": show_dsc}
    environment.filters |= {"named": join_first, "panel": _panel_uri}
    return environment.get_template("report.html.j2").render(
        title=_title(runs),
        metadata=_metadata(runs, training, external),
        commands=_distinct(run.info.get("command") for run in runs),
        meanings={name: meaning for name in strategies if (meaning := STRATEGY_MEANINGS.get(name.split(" ")[0]))},
        runs=runs,
        data_notes=list(dict.fromkeys(note for run in runs for note in run.data_notes)),
        annotations=annotation_tables([(run.strategy, run.annotation) for run in runs], external),
        channels=annotation_tables([(run.strategy, run.channels) for run in runs], external, CHANNEL_COLUMNS[0]),
        privacy=statements_of(runs),
        duration=format_duration,
        problems=results.problems,
        table=overview(results.table) if results.table else None,
        comparison=results.comparison,
        gains=results.gains,
        compare_with_paper=results.compare_with_paper,
        star=STAR,
        level=LEVEL,
        empty_masks=_empty_masks(results),
        labels=results.labels,
        figures=_figures(results, folder / "figures"),
        plans=[plans for run in _one_run_per_strategy(runs) if (plans := collect_plans(run, training)) is not None],
        shown_cases=_shown_cases(results, folder / "figures"),
        many=results.has_many_nodes,
        most=MOST_NODES,
        node_titles=node_titles(results.table) if results.table else [],
        node_rows=node_rows(results.table) if results.table else [],
        num_training=num_training(runs),
        num_nodes=len(training) + len(external),
        script=SCRIPT.read_text(encoding="utf-8") if results.has_many_nodes else "",
        averaged_over=_averaged_over(results),
    )


def _figures(results: Results, saved: Path) -> dict[str, Picture]:
    """Name to figure of the page, for those that have data."""
    drawn: dict[str, tuple[Figure, str]] = {}
    if not results.rounds.empty:
        means = merge_rounds([run.round_means for run in results.runs]).assign(node=figures.ALL_NODES)
        both = [results.rounds] if means.empty else [results.rounds, means]
        curves = figures.learning_curves(pd.concat(both, ignore_index=True), results.training)
        drawn["learning_curves"] = curves, "Losses and pseudo-Dice over rounds"
        drawn["round_costs"] = figures.round_costs(results.rounds), "Time and traffic of a round"
    if results.table is not None:
        if not results.scores.empty:
            shown = results.scores, results.training, results.external, results.table.distance_unit
            if results.has_many_nodes:
                means = figures.score_distributions(*shown, num_training(results.runs))
                drawn["score_distributions"] = means, "DSC and HD95 of every node, sorted and by its number of cases"
            else:
                boxes = figures.case_scores(*shown)
                drawn["case_scores"] = boxes, "DSC and HD95 of held-out cases, one box per strategy and centre"
        told = over_labels(results.means)
        crossed = figures.cross_centre(results.cases, results.training, results.external, told)
        if crossed is not None:
            drawn["cross_centre"] = crossed, "DSC of every node's model at every centre"
    if results.comparison is not None and (intervals := results.comparison.intervals()):
        colours = figures.strategy_colours(results.table.strategies if results.table else [])
        title = f"points of DSC over {results.comparison.reference}, 95 % interval"
        if results.has_many_nodes:
            rows = [results.comparison.title_of(node) for node in results.external]
            differences = figures.sorted_differences(intervals, ALL_CENTRES, rows, title, colours)
        else:
            differences = figures.forest(intervals, title, colours, width=4.3)
        drawn["comparison"] = differences, title
    if results.gains is not None and results.gains.differences:
        title = f"points of DSC over {results.gains.alone}, 95 % interval"
        drawn["gains"] = draw_gains(results.gains, title, results.has_many_nodes), title
    return {name: _svg(figure, saved, name, title) for name, (figure, title) in drawn.items()}


def _averaged_over(results: Results) -> str:
    """What values and curves are averaged over beside cases: folds, seeds, both or nothing."""
    counts = {"folds": results.rounds.get("fold"), "seeds": results.rounds.get("seed")}
    return " and ".join(name for name, values in counts.items() if values is not None and values.nunique() > 1)


def format_duration(seconds: float | None) -> str:
    """Seconds as text, such as 42 s, 3 min 05 s, 2 h 10 min; a dash if unknown."""
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
    strategies = order_strategies(run.strategy for run in runs)
    names = strategies[0] if len(strategies) == 1 else f"{', '.join(strategies[:-1])} and {strategies[-1]}"
    return f"{names} on {', '.join(datasets)}" if datasets else names


def _metadata(runs: Sequence[Run], training: Sequence[str], external: Sequence[str]) -> list[tuple[str, str]]:
    counts = num_training(runs)
    if len(training) + len(external) > MOST_NODES:
        nodes, outside = [_count(training, counts)], [str(len(external))] if external else []
    else:
        nodes = [f"{node} ({counts[node]} cases)" if node in counts else node for node in training]
        outside = list(external)

    def values(key: str, show: Callable[[Any], str] = str) -> str:
        return ", ".join(_distinct(show(run.info[key]) for run in runs if run.info.get(key) is not None))

    seconds = [run.info["seconds"] for run in runs if "seconds" in run.info]
    versions = {name: number for run in runs for name, number in run.info.get("versions", {}).items()}
    metadata = [
        ("Dataset", values("dataset")),
        ("Configuration", values("configuration")),
        ("Training nodes", ", ".join(nodes)),
        ("External nodes", ", ".join(outside)),
        ("Rounds × iterations", " × ".join(filter(None, (values("rounds"), values("iterations"))))),
        ("Fold", ", ".join(_distinct(fold for run in runs for fold in run.folds))),
        ("Seed", values("seed")),
        ("Started", min((_moment(run.info["started"]) for run in runs if "started" in run.info), default="")),
        ("Duration", format_duration(sum(seconds)) if seconds else ""),
        ("Peak memory", values("peak_memory_gib", lambda gib: f"{gib:.1f} GiB") if len(runs) == 1 else ""),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]
    return [(name, value) for name, value in metadata if value]


def _count(nodes: Sequence[str], cases: Mapping[str, int]) -> str:
    known = [cases[node] for node in nodes if node in cases]
    return f"{len(nodes)}" + (f", {min(known)} to {max(known)} cases each, {sum(known):,} together" if known else "")


def num_training(runs: Sequence[Run]) -> dict[str, int]:
    """Node to its number of training cases, where a run has told it."""
    return {node: number for run in runs for node, number in run.info.get("num_training", {}).items()}


def _moment(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z").strip()


def _empty_masks(results: Results) -> list[tuple[str, str]]:
    """Strategy, and its cases in which either prediction or reference is empty, but not both."""
    if results.table is None or results.cases.empty:
        return []
    rows = own_scores(results.cases, results.external_scores)
    lists: dict[str, list[str]] = {}
    one_empty = rows[rows["empty"].isin(ONE_EMPTY)]
    if results.has_many_nodes:
        return [
            (strategy, f"{len(found[['node', 'case']].drop_duplicates())} cases of {found['node'].nunique()} nodes")
            for strategy, found in one_empty.groupby("strategy", sort=False)
        ]
    affected = one_empty.groupby(["strategy", "node", "label", "empty"], sort=False)
    for (strategy, node, label, empty), found in affected["case"]:
        numbers = sorted(set(found))
        listed = join_first(list(map(str, numbers)), MOST_LISTED)
        lists.setdefault(strategy, []).append(f"{node} {listed} ({label}: empty {empty})")
    return [(strategy, "; ".join(parts)) for strategy, parts in lists.items()]


def _shown_cases(results: Results, saved: Path) -> dict[str, list[ShownCase]]:
    """Title of a node to the cases that the report shows of it; one figure per node is saved as well."""
    shown = {}
    nodes = [n for n in (*results.training, *results.external) if any(n in run.overlays for run in results.runs)]
    for node, what in choose_nodes(nodes, results.scores, results.external).items():
        if cases := choose_cases(results.runs, node):
            shown[f"{node}, {what}" if what else node] = cases
            titled = {f"{case.rank}, case {case.number}": case.slices for case in cases}
            name = f"{OVERLAY}_{''.join(c if c.isalnum() else '_' for c in node)}"
            figures.save_picture(figures.overlay_grid(node, titled), saved, name)
    return shown


def _panel_uri(overlay: Overlay) -> str:
    return figures.as_data_uri(figures.overlay_panel(overlay), "image/png")


def _svg(figure: Figure, saved: Path, name: str, title: str) -> Picture:
    svg = figures.save_figure(figure, saved, name)
    inches = figure.get_size_inches()[0]
    uri = figures.as_data_uri(svg, "image/svg+xml")
    return Picture(title, uri, width=round(105 * inches), min_width=round(82 * inches))


def _one_run_per_strategy(runs: Sequence[Run]) -> list[Run]:
    """The first finished run of each strategy, or else its first run."""
    chosen: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: not run.finished):
        chosen.setdefault(run.strategy, run)
    return [chosen[name] for name in order_strategies(run.strategy for run in runs)]


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))
