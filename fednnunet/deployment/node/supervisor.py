"""``fednnunet node up``: a hospital's worker and its connection to the server, kept alive."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess

from fednnunet.config.node_file import NodeFile
from fednnunet.datasets.raw import find_dataset
from fednnunet.deployment.node.connection import LOG_FILE, run_connection
from fednnunet.deployment.node.data_check import check_data
from fednnunet.deployment.node.preflight.before_start import check_before_start
from fednnunet.deployment.proxies import exempt_from_proxies
from fednnunet.deployment.supervision import OTHER_RUN, SupervisedProcess, ended_by_signal, supervise, terminal
from fednnunet.lock import locked
from fednnunet.node.launcher import WORKER_IMPORTS, WorkerAddress, socket_folder, worker_address, worker_context
from fednnunet.processes import sigint_ignored_by_children

WORKER_MODULE = "fednnunet.deployment.node.deployed_worker"
RETRY_TIMEOUT_S = 600.0
"""How long the connection waits for a worker that is being restarted."""


def serve(node_file: NodeFile) -> None:
    """Keep the worker and the connection alive until a signal ends them.

    Args:
        node_file: configuration of the node.

    Raises:
        ConfigError: key, certificate, proxy or work folder cannot be used, or another process uses that folder.
        DataError: there is no dataset where the configuration says, or it cannot be trained on.
    """
    os.umask(0o077)  # the work folder holds data that were made from the images
    find_dataset(node_file.data, node_file.raw_folder, node_file.name)
    exempt_from_proxies()
    check_before_start(node_file)
    ended = ended_by_signal()
    notify = terminal()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with locked(node_file.folder), socket_folder(node_file.folder) as sockets:
        check_data(node_file, ended, notify)
        if not ended.is_set():
            notify(f"node {node_file.name}: work folder {node_file.folder}; connecting to {node_file.server}")
            for _ in supervise(_processes(node_file, worker_address(sockets, "worker")), ended, notify):
                pass
        notify(f"node {node_file.name} has ended; its finished work is kept")


def _processes(node_file: NodeFile, address: WorkerAddress) -> list[SupervisedProcess]:
    """The worker and the connection, which are to be kept alive."""
    node_config = address.node_config | {"retry-timeout-s": str(RETRY_TIMEOUT_S)}
    context = worker_context(WORKER_IMPORTS, WORKER_MODULE)

    def start_worker() -> BaseProcess:
        process = context.Process(target=_work, args=(node_file, address.socket, address.key), name="worker")
        process.start()
        return process

    def start_connection() -> BaseProcess:
        # Not forked from the worker's server: it needs no torch, and must not wait for it.
        process = multiprocessing.get_context("spawn").Process(
            target=run_connection, args=(node_file, node_config, node_file.folder / LOG_FILE), name="connection"
        )
        with sigint_ignored_by_children():
            process.start()
        return process

    return [
        SupervisedProcess("worker", start_worker, expected_exit_codes=[OTHER_RUN]),
        SupervisedProcess("connection", start_connection),
    ]


def _work(node_file: NodeFile, address: str, key: bytes) -> None:
    # Imported here: this process needs no torch.
    from fednnunet.deployment.node.deployed_worker import run_deployed_worker

    run_deployed_worker(node_file, address, key)
