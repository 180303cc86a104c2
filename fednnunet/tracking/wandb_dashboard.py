"""The comparison of runs in Weights & Biases as code: a workspace and a report of the same panels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednnunet.errors import ConfigError, DataError
from fednnunet.files import write_atomically
from fednnunet.listing import MOST_NODES
from fednnunet.reporting.run_folder import node_order, read_runs
from fednnunet.reporting.tables.results_table import MEAN
from fednnunet.tracking.base import MEANS, SLOWEST, SPREAD, TOTALS, fold_prefix
from fednnunet.tracking.wandb_account import check_account, connection_problem
from fednnunet.tracking.wandb_tracker import COMPARISON, NODE, PICTURE, SERVER

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

NAME = "FednnU-Net: strategies compared"
ROUND = "round"
MOST_RUNS = 100
SCORES = {"dsc": "DSC", "hd95": "HD95"}
_INTRODUCTION = (
    "A bar or line is the mean over runs of a strategy (seeds, folds); its range is the standard deviation. "
    "Scores are of each centre's own model on its held-out cases; mean goes over training centres."
)


@dataclass(frozen=True)
class Metrics:
    """Names under which the tracker logs some runs.

    Attributes:
        scores: metric to summary keys of the server's run: the mean first, then one per node; where a run has many
            nodes, their spread.
        curves: title to keys of the server's run over rounds.
        costs: title to keys of seconds and bytes per round.
        many: whether a run has many nodes, whose pictures are in the server's run.
    """

    scores: dict[str, list[str]]
    curves: dict[str, list[str]]
    costs: dict[str, list[str]]
    many: bool = False


def metrics_of(run_folders: Sequence[Path]) -> Metrics:
    """Names under which the tracker logs these runs.

    Raises:
        DataError: none of them is finished, or a file cannot be read.
    """
    runs = [run for run in read_runs(run_folders) if run.finished]
    if not runs:
        raise DataError("no run is finished: its nodes are not known yet")
    training, external = node_order(runs)
    folds = [(run.info, fold) for run in runs for fold in run.rounds["fold"].unique()]
    prefixes = sorted({fold_prefix(info, fold) for info, fold in folds})

    def over_rounds(columns: Sequence[str], of_all: str) -> dict[str, list[str]]:
        return {column: [f"{prefix}{column}/{of_all}" for prefix in prefixes] for column in columns}

    shown = [*training, *external]
    if many := len(shown) > MOST_NODES:
        shown = [*SPREAD, *(f"external/{name}" for name in SPREAD if external)]
    return Metrics(
        scores={metric: [f"{metric}/{name}" for name in (MEAN, *shown)] for metric in SCORES},
        curves=over_rounds(MEANS, "mean"),
        costs=over_rounds(SLOWEST, "slowest") | over_rounds(TOTALS, "total"),
        many=many,
    )


def build_workspace(metrics: Metrics, entity: str, project: str, sweep: str | None = None) -> ws.Workspace:
    """Sections for results, learning curves, time and bytes, pictures; runs of the server, grouped by strategy.

    Args:
        metrics: to show.
        entity: W&B user or team.
        project: of W&B.
        sweep: only runs of this sweep.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in _panels(metrics).items()],
        settings=ws.WorkspaceSettings(x_axis=ROUND, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_filters(sweep, SERVER, NODE),
            groupby=[_config("strategy"), _config("dataset")],
            pinned_columns=[f"summary:{key}" for key in metrics.scores["dsc"]],
        ),
    )


def build_report(metrics: Metrics, entity: str, project: str, sweep: str | None = None) -> wr.Report:
    """The same as a page with text; the arguments are those of :func:`build_workspace`."""
    import wandb_workspaces.reports.v2 as wr

    # Without an entity the library does not ask W&B for the project, which then is that of the report.
    federations = wr.Runset(
        name="federations", filters=_filters(sweep, SERVER), groupby=["config.strategy", "config.dataset"]
    )
    nodes = wr.Runset(name="nodes", filters=_filters(sweep, NODE), groupby=["config.strategy", "config.node"])
    table = wr.PanelGrid(
        runsets=[wr.Runset(name="comparisons", filters=_filters(sweep, COMPARISON))],
        panels=[wr.WeavePanelSummaryTable(table_name="results")],
    )
    blocks: list[Any] = [wr.P(_INTRODUCTION), wr.TableOfContents()]
    for name, panels in _panels(metrics).items():
        runset = nodes if name == "Pictures" and not metrics.many else federations
        blocks += [wr.H1(name), wr.PanelGrid(runsets=[runset], panels=panels)]
    blocks += [wr.H1("Table of a sweep"), table]
    return wr.Report(entity=entity, project=project, title=NAME, blocks=blocks, width="fluid")


def as_sent(board: ws.Workspace | wr.Report) -> dict[str, Any]:
    """What the library sends to W&B of it."""
    content: dict[str, Any] = json.loads(board._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return content


def make_dashboard(
    metrics: Metrics, path: Path, entity: str | None, project: str, sweep: str | None, *, offline: bool
) -> list[str]:
    """Write workspace and report as JSON to ``path`` and, unless ``offline``, save them at W&B.

    Args:
        metrics: metrics to show.
        path: file to write.
        entity: W&B user or team; None for the account's default.
        project: W&B project.
        sweep: show only runs of this sweep.
        offline: do not send it.

    Returns:
        Lines for the user.

    Raises:
        ConfigError: a library is missing, or W&B refuses the dashboard.
    """
    import requests
    import wandb

    try:
        import wandb_workspaces  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("wandb-dashboard needs wandb-workspaces: pip install 'fednnunet[tracking]'") from None
    problem = "" if offline else _sending_problem()
    send = not offline and not problem
    try:
        entity = entity or (wandb.Api().default_entity if send else None) or ""
        workspace = build_workspace(metrics, entity, project, sweep)
        report = build_report(metrics, entity, project, sweep)
        write_atomically(path, json.dumps({"workspace": as_sent(workspace), "report": as_sent(report)}, indent=1))
        if send:
            return [report.save().url, workspace.save().url]  # the first makes the project where there is none
    except (wandb.Error, requests.RequestException, ValueError) as error:
        raise ConfigError(f"W&B did not take the dashboard: {' '.join(str(error).split())}") from error
    reason = f" ({problem})" if problem else ""
    return [f"not sent{reason}: {path} holds what would be; to send it, give the same command without --offline"]


def _sending_problem() -> str:
    try:
        check_account()
    except ConfigError as error:
        return str(error)
    return connection_problem()


def _panels(metrics: Metrics) -> dict[str, list[Any]]:
    import wandb_workspaces.reports.v2 as wr

    layout = [wr.Layout(x=8 * (number % 3), y=6 * (number // 3), w=8, h=6) for number in range(100)]
    strategy: dict[str, Any] = {
        "groupby": wr.Config("strategy"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
        "max_runs_to_show": MOST_RUNS,
    }

    def bars(keys: Sequence[str], title: str) -> list[Any]:
        return [
            wr.BarPlot(title=f"{title} {key.partition('/')[2]}", metrics=[key], layout=place, **strategy)
            for key, place in zip(keys, layout, strict=False)
        ]

    def lines(curves: dict[str, list[str]]) -> list[Any]:
        return [
            wr.LinePlot(title=title.replace("_", " "), x=ROUND, y=keys, layout=place, **strategy)
            for (title, keys), place in zip(curves.items(), layout, strict=False)
        ]

    return {
        **{f"{title} by strategy": bars(metrics.scores[metric], title) for metric, title in SCORES.items()},
        "Learning curves": lines(metrics.curves),
        "Time and bytes": lines(metrics.costs),
        "Pictures": [
            wr.MediaBrowser(title="held-out cases", media_keys=[PICTURE], layout=wr.Layout(x=0, y=0, w=24, h=12))
        ],
    }


def _filters(sweep: str | None, *job_types: str) -> list[Any]:
    from wandb_workspaces import expr

    kinds = [expr.Metric("JobType").isin(list(job_types))]
    return kinds if sweep is None else [*kinds, expr.Config("sweep") == sweep]


def _config(key: str) -> Any:
    from wandb_workspaces import expr

    return expr.Config(key)
