"""Experiment trackers, chosen with ``logger=csv`` or ``logger=wandb``."""

from __future__ import annotations

import io
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold
from fednnunet.files import write_atomically
from fednnunet.reporting import figures
from fednnunet.reporting.run_folder import Run, brief_plans, read_run
from fednnunet.reporting.tables import MEAN, SUMMARY_COLUMNS, results_table, summarise

if TYPE_CHECKING:
    import wandb

_SERVER = ""
"""Key of the server's run: no node is called so."""


class Tracker(Protocol):
    """Follows one run of the federation."""

    def start(self, run: Mapping[str, Any]) -> None:
        """The run begins; ``run`` holds what ``run.json`` does.

        Raises:
            ConfigError: the tracker can not be reached.
        """

    def log_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """The nodes' plans, as in ``plans.json``."""

    def begin_fold(self, fold: Fold, rounds: int) -> None:
        """The rounds that follow are of this fold."""

    def log_round(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A round is over; rows as in ``rounds.csv``, one a node."""

    def log_result(self, run_folder: Path) -> None:
        """The run was scored; its folder holds all files."""

    def finish(self, ok: bool) -> None:
        """The run is over, well or not. May be called twice, and without :meth:`start`."""


class CsvTracker:
    """Adds nothing: the CSV files of the run folder are written by every run."""

    def start(self, run: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def log_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """Nothing to do."""

    def begin_fold(self, fold: Fold, rounds: int) -> None:
        """Nothing to do."""

    def log_round(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing to do."""

    def log_result(self, run_folder: Path) -> None:
        """Nothing to do."""

    def finish(self, ok: bool) -> None:
        """Nothing to do."""


class WandbTracker:
    """Weights & Biases: a group for the run of the federation, in it a run for the server and one a node.

    Where a run trains several folds, its curves are named by fold: ``fold_1/train_loss``. A run that was interrupted
    goes on under the ids it had, which ``<folder>/wandb/runs.json`` keeps.

    Args:
        project: W&B project.
        group: name of the group; None for strategy, dataset, seed, fold and time of start.
        entity: user or team; None for the account's default.
        mode: ``offline`` needs no account.
        tags: of every W&B run.
        folder: its subfolder ``wandb`` takes W&B's files.
        pictures: send the overlays of held-out cases, too.
    """

    def __init__(
        self,
        project: str,
        group: str | None = None,
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
        tags: Sequence[str] = (),
        folder: str | Path = ".",
        pictures: bool = True,
    ) -> None:
        self.project = project
        self.group = group
        self.entity = entity
        self.mode = mode
        self.tags = tuple(tags)
        self.folder = Path(folder)
        self.pictures = pictures
        self._info: dict[str, Any] = {}
        self._runs: dict[str, wandb.Run] = {}
        self._ids: dict[str, str] = {}
        self._prefix = ""
        self._folds_before = 0  # W&B's step must grow from fold to fold
        self._step = 0

    def start(self, run: Mapping[str, Any]) -> None:
        """Open the server's run; a node's follows when it is first heard of.

        Raises:
            ConfigError: no account on this machine, or W&B does not answer.
        """
        self._info = dict(run)
        note = json.loads(self._note.read_text()) if self._note.is_file() else {}
        self._ids = note.get("ids", {})
        if self.group is None:
            started = str(run.get("started", "")) or _now()
            name = f"{run['strategy']}-{run['dataset']}-seed{run['seed']}-fold{run['fold']}-{started}"
            self.group = str(note.get("group", name))
        self._run_of(_SERVER)

    @property
    def _note(self) -> Path:
        return self.folder / "wandb" / "runs.json"

    def _id_of(self, node: str) -> str:
        if node not in self._ids:
            self._ids[node] = uuid.uuid4().hex[:8]
            write_atomically(self._note, json.dumps({"group": self.group, "ids": self._ids}))
        return self._ids[node]

    def log_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """Plans as configuration: in brief at the server, in brief and whole at each node."""
        configuration = str(self._info.get("configuration", "2d"))
        briefs = {node: brief_plans(plan, configuration) for node, plan in plans.items()}
        self._run_of(_SERVER).config.update({"plans": briefs})
        for node, plan in plans.items():
            self._run_of(node).config.update({"plan": briefs[node], "nnunet_plans": dict(plan)})

    def begin_fold(self, fold: Fold, rounds: int) -> None:
        """Name the curves that follow."""
        self._prefix = f"fold_{fold}/" if isinstance(self._info.get("fold"), list) else ""
        self._folds_before = self._step

    def log_round(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A node's figures to its run; means, slowest node and traffic to the server's."""
        if not rows:
            return
        server_round = int(rows[0]["round"])
        self._step = self._folds_before + server_round
        for row in rows:
            numbers = {key: value for key, value in row.items() if _is_number(value)}
            self._log(str(row["node"]), numbers, server_round)
        totals: dict[str, float] = {}
        for name, columns, gather in (
            ("mean", ("train_loss", "val_loss", "pseudo_dice"), _mean),
            ("slowest", ("seconds_train", "seconds_exchange"), max),
            ("total", ("bytes_up", "bytes_down"), sum),
        ):
            for column in columns:
                values = [float(row[column]) for row in rows if _is_number(row.get(column))]
                if values:
                    totals[f"{column}/{name}"] = gather(values)
        for row in rows:
            if _is_number(row.get("pseudo_dice")):
                totals[f"pseudo_dice/{row['node']}"] = float(row["pseudo_dice"])
        self._log(_SERVER, totals, server_round)

    def _log(self, node: str, numbers: Mapping[str, float], server_round: int) -> None:
        named = {f"{self._prefix}{key}": value for key, value in numbers.items() if key != "round"}
        self._run_of(node).log({**named, "round": server_round}, step=self._step)

    def log_result(self, run_folder: Path) -> None:
        """Tables of nodes and of cases, final scores as summaries, one picture a node.

        Raises:
            DataError: a file of the run can not be read; names it.
        """
        import wandb

        run = read_run(run_folder)
        server = self._run_of(_SERVER)
        server.config.update(run.info, allow_val_change=True)
        if run.plans:
            self.log_plans(run.plans)
        summary = summarise(run.cases.drop(columns="seed"))[SUMMARY_COLUMNS]
        step = self._step + 1
        server.log(
            {
                "results": wandb.Table(dataframe=summary),
                "cases": wandb.Table(dataframe=run.cases.drop(columns="seed")),
            },
            step=step,
        )
        external = [str(name) for name in run.info.get("external", [])]
        training = [str(name) for name in summary["node"] if name not in external]
        table = results_table(summary, training, external)
        for metric in table.metrics:
            for node in table.columns:
                value = float(table.values[metric.column].loc[run.setup, node])
                if math.isnan(value):
                    continue
                server.summary[f"{metric.column}/{node}"] = value
                if node != MEAN:
                    self._run_of(node).summary[metric.column] = value
        if self.pictures:
            self._log_pictures(run, step)

    def finish(self, ok: bool) -> None:
        """Close all runs; they are marked failed where the federation failed."""
        while self._runs:
            _, run = self._runs.popitem()
            run.finish(exit_code=0 if ok else 1)

    def _log_pictures(self, run: Run, step: int) -> None:
        import wandb
        from PIL import Image

        for centre, cases in run.overlays.items():
            case = min(cases)
            overlay = figures.read_overlay(cases[case])
            png = figures.as_png(figures.overlay_grid(centre, {f"case {case}": {run.setup: overlay}}))
            with Image.open(io.BytesIO(png)) as picture:
                image = wandb.Image(picture, caption=f"{centre}, held-out case {case}")
            self._run_of(centre).log({"held-out case": image}, step=step)

    def _run_of(self, node: str) -> wandb.Run:
        if node not in self._runs:
            self._runs[node] = self._open(node)
        return self._runs[node]

    def _open(self, node: str) -> wandb.Run:
        import wandb

        if self.mode == "online" and not wandb.api.api_key:
            raise ConfigError(
                "logger=wandb: this machine knows no W&B account; run `wandb login` or set WANDB_MODE=offline"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                id=self._id_of(node),
                resume="allow",
                name=node or "server",
                job_type="node" if node else "server",
                tags=self.tags,
                config=self._info | ({"node": node} if node else {}),
                dir=self.folder,
                mode=self.mode,
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=node != _SERVER),
            )
        except wandb.Error as error:
            raise ConfigError(f"logger=wandb: {' '.join(str(error).split())}") from error
        run.define_metric("*", step_metric="round")
        return run


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
