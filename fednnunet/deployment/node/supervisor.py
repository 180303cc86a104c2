"""``fednnunet node up``: a hospital's worker and its link to the server, kept alive."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

from fednnunet.config.node_file import NodeFile
from fednnunet.datasets.raw import find_dataset
from fednnunet.deployment.node.connection import LOG_FILE, read_key, run_link
from fednnunet.deployment.supervision import OTHER_RUN, SupervisedProcess, ended_by_signal, supervise, terminal
from fednnunet.lock import locked

PRELOAD = ["fednnunet.deployment.node.deployed_worker"]
RETRY_TIMEOUT_S = 600.0
"""The link waits so long for a worker that is started again."""


def serve(site: NodeFile) -> None:
    """Keep the worker and the link alive until a signal ends them.

    Args:
        site: configuration of the node.

    Raises:
        ConfigError: the key cannot be read, or another process uses the work folder.
        DataError: there are no data where the configuration says.
    """
    os.umask(0o077)  # the work folder holds what was made of the images
    find_dataset(site.data, site.raw_folder, site.name)
    if site.key is not None:
        read_key(site.key)
    ended = ended_by_signal()
    tell = terminal()
    os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it when it is imported
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    # AF_UNIX paths hold about 100 characters: the work folder may be too deep. mkdtemp makes it 0700.
    sockets = Path(tempfile.mkdtemp(prefix="fednnunet-"))
    key, key_file = secrets.token_bytes(32), sockets / "worker.key"
    key_file.touch(mode=0o600)
    key_file.write_bytes(key)
    address = str(sockets / "worker.sock")
    # Flower's node configuration: what the ClientApp needs to find the worker.
    node_config = {"socket": address, "key-file": str(key_file), "retry-timeout-s": str(RETRY_TIMEOUT_S)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)

    def start_worker() -> BaseProcess:
        process = context.Process(target=_work, args=(site, address, key), name="worker")
        process.start()
        return process

    def start_link() -> BaseProcess:
        # Not forked from the worker's server: it needs no torch, and shall not wait for it.
        process = multiprocessing.get_context("spawn").Process(
            target=run_link, args=(site, node_config, site.folder / LOG_FILE), name="link"
        )
        process.start()
        return process

    kept = [SupervisedProcess("worker", start_worker, meant=[OTHER_RUN]), SupervisedProcess("link", start_link)]
    try:
        with locked(site.folder):
            tell(f"node {site.name}: work folder {site.folder}; connecting to {site.server}")
            for _ in supervise(kept, ended, tell):
                pass
            tell(f"node {site.name} has ended; what it has finished is kept")
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _work(site: NodeFile, address: str, key: bytes) -> None:
    # Imported here: this process needs no torch.
    from fednnunet.deployment.node.deployed_worker import run_site_worker

    run_site_worker(site, address, key)
