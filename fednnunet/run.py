"""A run, from the configuration to the report: the table of contents."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from errno import EROFS
from pathlib import Path

from flwr.serverapp import ServerApp
from hydra.utils import instantiate

from fednnunet.client_app import app as client_app
from fednnunet.config.run import RunConfig
from fednnunet.errors import ConfigError, FednnUNetError
from fednnunet.files import DISK_FULL, NOT_WRITABLE, private_files, write_atomically
from fednnunet.launch.early_checks import check_names_and_files
from fednnunet.launch.local_identities import with_identities
from fednnunet.launch.personal_checks import check_personal
from fednnunet.launch.privacy_checks import check_privacy
from fednnunet.launch.run_folder import (
    check_folder,
    final_metadata,
    log_file,
    remove_resume_files,
    result_settings,
    run_metadata,
)
from fednnunet.launch.settings import (
    build_strategy,
    node_settings,
    parallel_nodes,
    personal_training,
    prepare_centres,
    server_settings,
    worker_plans,
)
from fednnunet.lock import LOCK_FILE, locked
from fednnunet.node.launcher import NodeProcesses
from fednnunet.node.settings import NodeSettings
from fednnunet.reporting.finish import Result, finish_run
from fednnunet.run_files import CONFIG_FILE, LOG_FILE, RUN_FILE
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.server_app import build_server_app
from fednnunet.tracking.base import Trackers
from fednnunet.tracking.terminal import RunProgress

log = logging.getLogger(__name__)


def run(
    config: RunConfig, command: str, sweep: str | None = None, command_files: Mapping[Path, str] | None = None
) -> Result:
    """Run one strategy into ``config.paths.run``; resume where an interrupted run of the same config stopped.

    Args:
        config: checked configuration.
        command: what the user typed, for the report.
        sweep: name of the sweep that this run is a job of, if any.
        command_files: files that keep the command for ``continue=``, and their text; written once nothing speaks
            against the run.

    Raises:
        FednnUNetError: the configuration or the data cannot work, or a node failed.
        KeyboardInterrupt: after every process was ended; the last checkpoints are kept.
    """
    try:
        with private_files(), locked(config.paths.run), _removed_if_unused(config.paths.run):
            return _run(config, command, sweep, command_files or {})
    except OSError as error:
        if problem := _storage_problem(error, config.paths.run):
            raise ConfigError(f"{problem}, and resume with continue={config.paths.run}") from error
        raise


@contextlib.contextmanager
def _removed_if_unused(folder: Path) -> Iterator[None]:
    """Leave no folder behind of a run that was refused before anything was written."""
    try:
        yield
    except FednnUNetError:
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _storage_problem(error: OSError, folder: Path) -> str:
    """What to do about a disk that is full or read-only; empty for any other error."""
    file = Path(str(error.filename or folder))
    if error.errno in DISK_FULL:
        return f"{file}: {error.strerror}; make room"
    if error.errno in NOT_WRITABLE and file.is_relative_to(folder):
        return f"{folder} cannot be written: {error.strerror}; make it writable"
    return f"{file} cannot be written: {error.strerror}; make it writable" if error.errno == EROFS else ""


def _run(config: RunConfig, command: str, sweep: str | None, command_files: Mapping[Path, str]) -> Result:
    folder = config.paths.run
    check_folder(folder, config)
    if (folder / RUN_FILE).is_file():
        log.info("%s holds this run already, and it is finished", folder)
        return finish_run(folder)
    started, begin = datetime.now(UTC), time.monotonic()
    strategy = build_strategy(config)
    check_privacy(config)
    check_personal(config, strategy)
    with contextlib.ExitStack() as stack:
        nodes = []
        if config.on_single_machine:
            check_names_and_files(config)
            nodes = node_settings(config, prepare_centres(config))
        else:
            stack.enter_context(_reserved_server(config))
        metadata = run_metadata(config, command, sweep)
        with contextlib.suppress(PermissionError):  # a file system without modes
            folder.chmod(0o700)
        write_atomically(folder / CONFIG_FILE, json.dumps(result_settings(config), indent=1))
        for path, text in command_files.items():
            write_atomically(path, text)
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
        trackers.on_run_start(metadata)
        recorder = RunRecorder(
            folder, config.strategy.name, config.folds, [progress, trackers], personal_training(config)
        )
        app = build_server_app(server_settings(config), strategy, recorder)
        if config.on_single_machine:
            peak_memory_gib = run_local(app, config, nodes)
        else:
            peak_memory_gib = run_deployed(app, config, recorder)
        metadata |= final_metadata(recorder, strategy, started, time.monotonic() - begin, peak_memory_gib)
        write_atomically(folder / RUN_FILE, json.dumps(metadata, indent=1))
        result = finish_run(folder)
        trackers.on_result(folder)
    remove_resume_files(folder, nodes)
    return result


def _reserved_server(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs away from the server; refused while it has one."""
    from fednnunet.deployment.server.run_server_app import reserved

    assert config.federation.server is not None, "checked with the configuration"
    return reserved(config.federation.server)


def run_local(app: ServerApp, config: RunConfig, nodes: Sequence[NodeSettings]) -> float:
    """Run server and nodes on this machine; returns their peak memory together, in GiB."""
    if config.privacy.secure_sums is not None:
        nodes = with_identities(nodes)
    workers = worker_plans(config, nodes)
    with (
        NodeProcesses(workers) as processes,
        contextlib.closing(
            LocalGrid(
                client_app,
                processes.addresses,
                parallel_nodes(config, workers),
                workers=[worker.nodes for worker in workers],
            )
        ) as grid,
    ):
        grid.run_server(app)
    return processes.peak_memory_gib


def run_deployed(app: ServerApp, config: RunConfig, recorder: RunRecorder) -> float:
    """Run the server of nodes on other machines; returns the peak memory of this process, in GiB."""
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
