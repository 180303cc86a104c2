"""Weights & Biases: a run of the federation as a group, a sweep's comparison as a run of its own."""

from __future__ import annotations

import io
import json
import textwrap
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold
from fednnunet.files import write_atomically
from fednnunet.reporting.report import OVERLAY
from fednnunet.reporting.run_folder import Run, brief_plans, node_order, read_csv, read_run
from fednnunet.reporting.scores import collect_scores
from fednnunet.reporting.tables.results_table import MEAN, SUMMARY_COLUMNS
from fednnunet.run_files import CASES_FILE, REPORT_FILE, ROUNDS_FILE, SUMMARY_FILE
from fednnunet.tracking.base import (
    MEANS,
    NODES,
    SLOWEST,
    TOTALS,
    Tracker,
    fold_prefix,
    has_many_nodes,
    node_metrics,
    overlay_images,
    round_metrics,
    scores_of,
    summarised_scores,
)
from fednnunet.tracking.wandb_account import check_account, connection_problem

if TYPE_CHECKING:
    import wandb

SERVER, NODE, COMPARISON = "server", "node", "comparison"
"""Job types."""
PICTURE = "held-out case"
FINISH_SECONDS = 60.0
"""Seconds that W&B has to take what is left at the end of a run; what it did not take stays on the disk."""
_LONGEST_TAG = 64
_SERVER = ""
"""Key of the server's run: no node has this name."""


class WandbTracker(Tracker):
    """A W&B group for the run of the federation, in it a W&B run for the server and one per node.

    Runs compare by those of job type ``server``: their config has ``strategy``, ``dataset``, ``configuration``,
    ``seed``, ``fold``, ``sweep`` and what the command line changed (``overrides``), their summary ``dsc/<node>``,
    ``dsc/mean`` and the same of HD95. Where a run trains several folds, its curves are named by fold:
    ``fold_1/train_loss``. A run that was interrupted goes on under the ids it had, which ``<folder>/wandb/runs.json``
    keeps. Where W&B cannot be reached, a run goes on offline.

    Of more than :data:`~fednnunet.listing.MOST_NODES` nodes, the server's run is the only one: it has means and spreads
    over nodes, and each node's figures as ``nodes/<node>/<name>``, which W&B keeps and does not draw by itself.

    Args:
        project: W&B project.
        group: name of the group; None for strategy, dataset, seed, fold and time of start, in a sweep for the names of
            sweep and job.
        entity: user or team; None for the account's default.
        mode: ``offline`` needs no account.
        tags: tags of every W&B run, beside strategy, dataset, configuration and sweep.
        folder: the run's; its subfolder ``wandb`` takes W&B's files.
        pictures: also send the overlays of held-out cases.
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
        self._name = ""
        self._runs: dict[str, wandb.Run] = {}
        self._ids: dict[str, str] = {}
        self._many = False
        self._prefix = ""
        self._folds_before = 0  # W&B's step must grow from fold to fold
        self._step = 0

    def on_run_start(self, metadata: Mapping[str, Any]) -> None:
        """Open the server's run; a node's follows at its first figures.

        Raises:
            ConfigError: no account on this machine, or W&B refuses it.
        """
        self._check_connection()
        self._info = {**metadata, "overrides": read_run(self.folder).overrides}
        self._many = has_many_nodes(self.folder)
        strategy, dataset, sweep = metadata.get("strategy"), metadata.get("dataset"), metadata.get("sweep")
        suffix = f"seed{metadata['seed']}-fold{metadata['fold']}"
        self._name = self.folder.name if sweep else f"{strategy}-{suffix}"
        started = str(metadata.get("started", "")) or _timestamp()
        self._tag(strategy, dataset, metadata.get("configuration"), sweep)
        self._read_note(f"{sweep}/{self._name}" if sweep else f"{strategy}-{dataset}-{suffix}-{started}")
        self._run_of(_SERVER)

    def on_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """Plans as configuration: in brief at the server, in brief and whole at each node.

        Those of many nodes would be thousands of columns; they are in ``plans.json``.
        """
        self._many = self._many or has_many_nodes(self.folder, plans)
        if self._many:
            return
        configuration = str(self._info.get("configuration", "2d"))
        briefs = {node: brief_plans(plan, configuration) for node, plan in plans.items()}
        self._run_of(_SERVER).config.update({"plans": briefs})
        for node, plan in plans.items():
            self._run_of(node).config.update({"plan": briefs[node], "nnunet_plans": dict(plan)})

    def on_fold_start(self, fold: Fold, rounds: int, finished: int) -> None:
        """Name the curves that follow."""
        self._prefix = fold_prefix(self._info, fold)
        self._folds_before = self._step

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A node's figures to its run; means, slowest node and traffic to the server's."""
        if not rows:
            return
        self._step = self._folds_before + server_round
        of_nodes: dict[str, float] = {}
        for row in rows:
            node, numbers = str(row["node"]), node_metrics(row)
            if self._many:
                of_nodes |= {f"{NODES}/{self._prefix}{node}/{name}": value for name, value in numbers.items()}
            else:
                self._log(node, numbers, server_round)
        self._log(_SERVER, round_metrics(rows, self.round_means, self._many), server_round, of_nodes)

    def _log(
        self, node: str, numbers: Mapping[str, float], server_round: int, others: Mapping[str, float] | None = None
    ) -> None:
        """Log ``numbers`` by fold, and ``others`` by the names that they have."""
        named = {f"{self._prefix}{key}": value for key, value in numbers.items()}
        self._run_of(node).log({**named, **(others or {}), "round": server_round}, step=self._step)

    def on_result(self, run_folder: Path) -> None:
        """Tables of nodes and of cases, final scores as summaries, one picture per node; of many nodes, of some.

        Raises:
            DataError: a file of the run cannot be read; names it.
        """
        import wandb

        run = read_run(run_folder)
        server = self._run_of(_SERVER)
        info = run.info
        if self._many:  # what is told of single nodes would be a column each
            nodes = {name for names in node_order([run]) for name in names}
            info = {key: value for key, value in info.items() if not isinstance(value, dict) or not nodes & {*value}}
        server.config.update(info, allow_val_change=True)
        if run.plans:
            self.on_plans(run.plans)
        step = self._step + 1
        cases, means = run.cases.drop(columns="seed"), run.means.drop(columns="seed")
        summary = collect_scores(cases, means).summary[SUMMARY_COLUMNS]
        server.log({"results": wandb.Table(dataframe=summary), "cases": wandb.Table(dataframe=cases)}, step=step)
        for metric, by_node in scores_of(run).items():
            for node, value in by_node.items():
                single = node != MEAN
                server.summary[f"{NODES}/{node}/{metric}" if self._many and single else f"{metric}/{node}"] = value
                if single and not self._many:
                    self._run_of(node).summary[metric] = value
        if self._many:
            for metric, summaries in summarised_scores(run).items():
                server.summary.update({f"{metric}/{name}": value for name, value in summaries.items()})
        if self.pictures:
            self._log_pictures(run, step)

    def log_comparison(self, folder: Path) -> None:
        """One run of job type ``comparison``: the table, the figures, and ``report.html`` as page and artifact.

        Without ``pictures`` the overlays stay here, and so does the report, which holds them.

        Raises:
            ConfigError: as :meth:`start`.
            DataError: the table cannot be read.
        """
        import wandb

        self._check_connection()
        self._info = {"sweep": folder.name}
        self._name = f"comparison {folder.name}"
        self._tag(folder.name, COMPARISON)
        self._read_note(folder.name)
        run = self._open(COMPARISON, COMPARISON, self._name)
        self._runs[COMPARISON] = run
        run.log({"results": wandb.Table(dataframe=read_csv(folder / SUMMARY_FILE, SUMMARY_COLUMNS))})
        files = [folder / name for name in (CASES_FILE, SUMMARY_FILE, ROUNDS_FILE)]
        if self.pictures:
            run.log({"report": wandb.Html(str(folder / REPORT_FILE), inject=False)})
            files.append(folder / REPORT_FILE)
        for path in sorted((folder / "figures").glob("*.png")):
            if self.pictures or not path.name.startswith(OVERLAY):
                run.log({path.stem: wandb.Image(str(path))})
        artifact = wandb.Artifact(f"comparison-{run.id}", type="report")
        for file in files:
            artifact.add_file(str(file))
        run.log_artifact(artifact)

    def on_run_end(self, error: BaseException | None = None) -> None:
        """Close all runs; they are marked failed where the federation failed.

        Raises:
            TimeoutError: W&B did not take all of it in time; says how to send it later.
        """
        late = False
        while self._runs:
            _, run = self._runs.popitem()
            try:
                run.finish(exit_code=0 if error is None else 1)
            except TimeoutError:
                late = True
        if late:
            raise TimeoutError(f"W&B did not take everything; send it later with: {self._sync('run-*')}")

    # ---------------------------------------------------------------- runs of W&B

    def _tag(self, *names: Any) -> None:
        tags = [str(name) for name in (*names, *self.tags) if name]
        self.tags = tuple(dict.fromkeys(name[:_LONGEST_TAG] for name in tags))

    @property
    def _note(self) -> Path:
        return self.folder / "wandb" / "runs.json"

    def _read_note(self, group: str) -> None:
        """Take ids, and a group that the user did not name, from an interrupted run, or start with ``group``."""
        note = json.loads(self._note.read_text()) if self._note.is_file() else {}
        self._ids = note.get("ids", {})
        self.group = self.group or str(note.get("group", group))

    def _id_of(self, key: str) -> str:
        if key not in self._ids:
            self._ids[key] = uuid.uuid4().hex[:8]
            write_atomically(self._note, json.dumps({"group": self.group, "ids": self._ids}))
        return self._ids[key]

    def _log_pictures(self, run: Run, step: int) -> None:
        import wandb
        from PIL import Image

        pictures: dict[str, list[wandb.Image]] = {}
        for centre, case, png in overlay_images(run):
            with Image.open(io.BytesIO(png)) as picture:
                image = wandb.Image(picture, caption=f"{centre}, held-out case {case}")
            pictures.setdefault(_SERVER if self._many else centre, []).append(image)
        for node, images in pictures.items():
            self._run_of(node).log({PICTURE: images if self._many else images[0]}, step=step)

    def _run_of(self, node: str) -> wandb.Run:
        if node not in self._runs:
            name = f"{self._name} {node}" if node else self._name
            self._runs[node] = self._open(node, NODE if node else SERVER, name)
        return self._runs[node]

    def _check_connection(self) -> None:
        """Go offline where W&B cannot be reached: its own library would try for minutes.

        Raises:
            ConfigError: no account on this machine.
        """
        if self.mode != "online":
            return
        check_account()
        if problem := connection_problem():
            self._go_offline(problem)

    def _go_offline(self, problem: str) -> None:
        self.mode = "offline"
        self.notify(f"{problem}: it goes on offline. Send it later with: {self._sync('offline-run-*')}")

    def _sync(self, runs: str) -> str:
        return f"wandb sync {self.folder}/wandb/{runs}"

    def _open(self, key: str, job_type: str, name: str) -> wandb.Run:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                id=self._id_of(key),
                resume="allow",
                name=name,
                job_type=job_type,
                tags=self.tags,
                config=self._info | ({"node": key} if job_type == NODE else {}),
                dir=self.folder,
                mode=self.mode,
                reinit="create_new",
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    x_disable_stats=job_type != SERVER,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                ),
            )
        except wandb.errors.CommError as error:
            if self.mode != "online":
                raise
            self._go_offline(f"W&B does not answer ({textwrap.shorten(str(error), 200)})")
            del self._ids[key]  # the library holds it to be in use
            return self._open(key, job_type, name)
        except wandb.Error as error:
            raise ConfigError(f"logger=wandb: {' '.join(str(error).split())}") from error
        if self._many:  # patterns that overlap would leave it open which one holds
            run.define_metric(f"{NODES}/*", step_metric="round", hidden=True)
            for name in (*MEANS, *SLOWEST, *TOTALS, "fold_"):
                run.define_metric(f"{name}*", step_metric="round")
        else:
            run.define_metric("*", step_metric="round")
        return run


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
