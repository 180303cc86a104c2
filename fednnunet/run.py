"""A run, from the configuration to the report: the table of contents."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import platform
import resource
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.serverapp import ServerApp
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fednnunet import __version__
from fednnunet.client_app import app as client_app
from fednnunet.config.run import POOLED_NODE, RunConfig
from fednnunet.datasets.raw import find_dataset, read_dataset
from fednnunet.errors import ConfigError, FednnUNetError
from fednnunet.files import DISK_FULL, write_atomically
from fednnunet.lock import locked
from fednnunet.node.launcher import NodeProcesses
from fednnunet.node.settings import NodeSettings
from fednnunet.processes import LOG_FORMAT, cores
from fednnunet.reporting.finish import Result, finish_run
from fednnunet.run_files import CONFIG_FILE, LOG_FILE, RUN_FILE, RUN_ID_FILE
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.server_app import build_server_app
from fednnunet.server.session import ServerSettings
from fednnunet.server.strategy.base import Strategy
from fednnunet.tracking.base import Trackers
from fednnunet.tracking.terminal import RunProgress

log = logging.getLogger(__name__)


def run(config: RunConfig, command: str, sweep: str | None = None) -> Result:
    """Run one set-up into ``config.paths.run``; go on where an interrupted run of the same config stopped.

    Args:
        config: checked configuration.
        command: what the user typed, for the report.
        sweep: name of the sweep that this is a job of, if any.

    Raises:
        FednnUNetError: configuration or data cannot work; nothing was trained.
        KeyboardInterrupt: after every process was ended; the last checkpoints are there.
    """
    with locked(config.paths.run):
        try:
            return _run(config, command, sweep)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise ConfigError(
                f"{error.strerror} ({error.filename or config.paths.run}); make room, and go on with "
                f"continue={config.paths.run}"
            ) from error


def _run(config: RunConfig, command: str, sweep: str | None) -> Result:
    folder = config.paths.run
    check_folder(folder, config)
    if (folder / RUN_FILE).is_file():
        log.info("%s holds this run already, finished", folder)
        return finish_run(folder)
    started, begin = datetime.now(UTC), time.monotonic()
    here = config.federation.grid == "local"
    nodes = node_settings(config, prepare_centres(config)) if here else []
    facts = run_metadata(config, command, sweep)
    write_atomically(folder / CONFIG_FILE, json.dumps(result_settings(config), indent=1))
    strategy: Strategy = instantiate(config.strategy.aggregation)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_file(folder / LOG_FILE))
        progress = RunProgress(
            folder.name if sweep else config.strategy.name,
            [node.name for node in nodes] or [centre.name for centre in config.dataset.centres],
            external=[centre.name for centre in config.external_centres],
            folds=config.folds,
        )
        stack.enter_context(progress)
        progress.on_stage("start")
        trackers = Trackers([instantiate(entry) for entry in config.logger.values()], notify=progress.on_message)
        stack.push(lambda kind, error, trace: trackers.on_run_end(error))
        trackers.on_run_start(facts)
        recorder = RunRecorder(folder, config.strategy.name, config.folds, [progress, trackers])
        app = build_server_app(server_settings(config), strategy, recorder)
        peak_memory_gib = run_local(app, config, nodes) if here else run_deployed(app, config, recorder)
        facts |= final_metadata(recorder, strategy, started, time.monotonic() - begin, peak_memory_gib)
        write_atomically(folder / RUN_FILE, json.dumps(facts, indent=1))
        result = finish_run(folder)
        trackers.on_result(folder)
    remove_resume_files(folder, nodes)
    return result


def server_settings(config: RunConfig) -> ServerSettings:
    """What the server is told of the configuration."""
    settings = ServerSettings(
        fingerprint=config.fingerprint.intensity if config.strategy.fingerprint == "federated" else None,
        folds=config.folds,
        timeout=config.federation.timeout,
        dtype=config.exchange.dtype,
        cross_centre=config.evaluation.cross_centre,
        local_epochs=config.strategy.local_epochs,
        heterogeneous_tasks=config.strategy.heterogeneous_tasks,
        min_replies=config.federation.min_nodes,
        expected_nodes=config.federation.nodes,
        find_duplicates=config.federation.find_duplicates,
    )
    if config.federation.grid == "local":
        return settings
    return dataclasses.replace(
        settings,
        expected_nodes=config.federation.nodes or len(config.dataset.centres),
        wait_for_nodes=True,
        run=run_id(config.paths.run),
        shared_config=config.task.model_dump(mode="json", by_alias=True),
        centres={centre.name: centre.external for centre in config.dataset.centres},
    )


def run_id(folder: Path) -> str:
    """By which nodes on other machines know the run of this folder; the same when it goes on."""
    path = folder / RUN_ID_FILE
    if not path.is_file():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def run_local(app: ServerApp, config: RunConfig, nodes: Sequence[NodeSettings]) -> float:
    """Run server and nodes on this machine; the largest sum of their memory, in GiB."""
    with (
        NodeProcesses(nodes) as processes,
        contextlib.closing(LocalGrid(client_app, processes.addresses, parallel_nodes(config))) as grid,
    ):
        grid.run_server(app)
    return processes.peak_memory_gib


def run_deployed(app: ServerApp, config: RunConfig, recorder: RunRecorder) -> float:
    """Run the server of nodes on other machines; the largest memory of this process, in GiB."""
    from fednnunet.deployment.server.run_server_app import run_across_machines
    from fednnunet.deployment.server.run_status import RunStatus

    assert config.federation.server is not None, "checked with the configuration"
    status = RunStatus(
        config.federation.server, config.paths.run, strategy=config.strategy.name, dataset=config.dataset.name
    )
    recorder.observers.append(status)
    try:
        run_across_machines(config.federation.server, config.paths.run, app, recorder.on_message)
    except BaseException as error:
        status.on_run_end(error)
        raise
    status.on_run_end()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB


def final_metadata(
    recorder: RunRecorder,
    strategy: Strategy,
    started: datetime,
    seconds: float,
    peak_memory_gib: float,
) -> dict[str, Any]:
    """What is known of a run at its end, for ``run.json``."""
    return {
        "num_training": recorder.num_training,
        **recorder.training,
        "shared_fraction": strategy.shared_fraction() if len(recorder.num_training) > 1 else {},
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "peak_memory_gib": round(peak_memory_gib, 2),
    }


def check_folder(folder: Path, config: RunConfig) -> None:
    """Whether ``folder`` is free for this configuration, or holds a run of it.

    Raises:
        ConfigError: it holds a run of another configuration; names the first key that differs.
    """
    ours = result_settings(config)
    note = folder / CONFIG_FILE
    if note.is_file():
        theirs = json.loads(note.read_text())
        for key in ours:
            if ours[key] != theirs.get(key):
                raise ConfigError(
                    f"{folder} holds a run with {key}={theirs.get(key)}, not {ours[key]}; "
                    "choose another hydra.run.dir or remove the folder"
                )


def result_settings(config: RunConfig) -> dict[str, Any]:
    """What results depend on, flat; not where files lie or who watches."""
    groups = {
        "seed",
        "fold",
        "dataset",
        "strategy",
        "fingerprint",
        "exchange",
        "evaluation",
        "trainer",
        "model",
        "gpu_memory",
    }
    chosen = config.model_dump(mode="json", by_alias=True, include=groups)
    return dict(_flatten("", chosen))


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flatten(f"{prefix}.{key}".lstrip("."), inner)]


def prepare_centres(config: RunConfig) -> dict[str, Path]:
    """Raw folder of every centre; a generated dataset is made when it is not there.

    Raises:
        FednnUNetError: a folder is missing, empty or not nnU-Net's raw format.
    """
    raw_folder = Path(config.dataset.raw_folder) if config.dataset.raw_folder else None
    if config.dataset.generator is not None:
        try:
            instantiate(config.dataset.generator, folder=raw_folder, _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, FednnUNetError):  # Hydra wraps what the generator has to say
                raise error.__cause__ from None
            raise
    folders = {}
    for centre in config.dataset.centres:
        assert centre.dataset is not None, "checked with the configuration"
        folder = find_dataset(centre.dataset, raw_folder, centre.name)
        read_dataset(folder, centre.name, external=centre.external)
        folders[centre.name] = folder.resolve()
    return folders


def node_settings(config: RunConfig, folders: Mapping[str, Path]) -> list[NodeSettings]:
    """One node a centre; for the pooled baseline one that holds all training centres."""
    external = {centre.name: centre.external for centre in config.dataset.centres}
    taking_part = {centre.name for centre in (*config.training_centres, *config.external_centres)}
    nodes = {name: {name: folder} for name, folder in folders.items() if name in taking_part}
    if len(nodes) < len(folders):
        log.warning("external centres are left out: they have no 3d_lowres segmentations for the cascade to refine")
    if config.strategy.fingerprint == "pooled":
        pooled = {name: folder for name, folder in folders.items() if not external[name]}
        nodes = {POOLED_NODE: pooled} | {name: data for name, data in nodes.items() if external[name]}
    threads = config.node.threads or max(1, cores() // parallel_nodes(config))
    return [
        NodeSettings(
            name=name,
            folder=config.paths.run.resolve() / "nodes" / name,
            datasets=datasets,
            external=external.get(name, False),
            config=config,
            threads=threads,
            same_machine=True,
            find_duplicates=config.federation.find_duplicates,
        )
        for name, datasets in nodes.items()
    ]


def parallel_nodes(config: RunConfig) -> int:
    """Nodes that compute at the same time: as configured, else one per core, on a GPU one."""
    if config.federation.max_parallel_nodes:
        return config.federation.max_parallel_nodes
    on_gpu = config.node.device in ("cuda", "mps") or (config.node.device == "auto" and Path("/dev/nvidia0").exists())
    pooled = config.strategy.fingerprint == "pooled"
    return 1 if on_gpu or pooled else min(len(config.training_centres), cores())


def run_metadata(config: RunConfig, command: str, sweep: str | None) -> dict[str, Any]:
    """What the report says of a run: what was run, on what, with which versions."""
    return {
        "strategy": config.strategy.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "fold": config.fold,
        "configuration": config.dataset.configuration,
        "nodes": [centre.name for centre in config.training_centres],
        "external": [centre.name for centre in config.external_centres],
        "hd95_unit": config.dataset.hd95_unit,
        "sweep": sweep,
        "command": command,
        "versions": {
            "fednnunet": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("nnunetv2", "torch", "lightning", "flwr")},
        },
    }


class LogFile(logging.FileHandler):
    """A log that waits for room on a full disk, and does not fill the terminal with that."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Logging's hook, called while the error is handled."""
        error = sys.exception()
        if not (isinstance(error, OSError) and error.errno in DISK_FULL):
            super().handleError(record)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Log of this process and its libraries into ``path``; warnings of this package also on the terminal."""
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    handler = LogFile(path)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    before = root.level, flower.handlers, flower.propagate
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    flower.handlers, flower.propagate = [], True  # Flower writes to the terminal of its own accord
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        root.level, flower.handlers, flower.propagate = before


def remove_resume_files(folder: Path, nodes: Sequence[NodeSettings]) -> None:
    """The run is over: remove what only going on with it needs, as nnU-Net does with its last checkpoint."""
    for path in folder.glob("strategy_fold_*_round_*"):
        path.unlink()
    for node in nodes:
        for path in node.folder.glob("nnUNet_results/*/*/fold_*/checkpoint_round_*"):
            path.unlink()
