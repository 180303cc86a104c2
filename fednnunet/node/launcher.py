"""Start and end node workers on this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

import psutil

from fednnunet.errors import NodeError
from fednnunet.node.settings import NodeSettings
from fednnunet.processes import children_of

log = logging.getLogger(__name__)

PRELOAD = "fednnunet.node.worker"
MEMORY_SAMPLE_SECONDS = 1.0
END_SECONDS = 5.0


class NodeProcesses:
    """One worker process a node, forked from a server that has imported torch and nnU-Net once.

    A context manager: entering waits until every worker listens, leaving ends them all.

    Args:
        nodes: settings of each.

    Attributes:
        addresses: Flower's node id to the ``node_config`` of its relay.
        peak_memory_gib: largest sum of memory of this process and all it started, GiB.
    """

    def __init__(self, nodes: Sequence[NodeSettings]) -> None:
        self.nodes = nodes
        self.addresses: dict[int, dict[str, str]] = {}
        self.peak_memory_gib = 0.0
        self._processes: list[BaseProcess] = []
        self._stop = threading.Event()

    def __enter__(self) -> NodeProcesses:
        # AF_UNIX paths hold about 100 characters: the run folder may be too deep. mkdtemp makes it 0700.
        self._sockets = Path(tempfile.mkdtemp(prefix="fednnunet-"))
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        threading.Thread(target=self._watch_memory, name="memory", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        # nnU-Net reads it when it is imported, which the fork server does once for all workers.
        os.environ.setdefault("nnUNet_def_n_proc", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([PRELOAD])
        ready: dict[str, Connection] = {}
        for number, settings in enumerate(self.nodes, start=1):
            key = secrets.token_bytes(32)
            key_file = self._sockets / f"{number}.key"
            key_file.touch(mode=0o600)
            key_file.write_bytes(key)
            address = str(self._sockets / f"{number}.sock")
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_work, args=(settings, address, key, sender), name=f"node {settings.name}"
            )
            process.start()
            sender.close()
            self._processes.append(process)
            ready[settings.name] = receiver
            self.addresses[number] = {"name": settings.name, "socket": address, "key-file": str(key_file)}
        for settings, process in zip(self.nodes, self._processes, strict=True):
            wait([ready[settings.name], process.sentinel])
            try:
                ready[settings.name].recv_bytes()
            except EOFError:
                raise NodeError(
                    settings.name, f"its worker ended at its start; see {settings.folder / 'node.log'}"
                ) from None

    def _end(self) -> None:
        self._stop.set()
        children = [child for process in self._processes for child in children_of(process.pid)]
        for process in self._processes:
            process.terminate()
        _, alive = psutil.wait_procs(children, timeout=0)
        for process in self._processes:
            process.join(END_SECONDS)
            if process.is_alive():
                log.warning("%s did not end; killed", process.name)
                process.kill()
                process.join()
        for child in alive:  # augmentation and preprocessing processes of a worker
            _kill(child)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _watch_memory(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(MEMORY_SAMPLE_SECONDS):
            total = 0
            for process in (me, *children_of(me.pid)):
                try:
                    # Proportional set size: pages that forked workers share count once.
                    total += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
                except psutil.Error:
                    continue  # ended meanwhile
            self.peak_memory_gib = max(self.peak_memory_gib, total / 2**30)


def _kill(process: psutil.Process) -> None:
    """Kill ``process`` unless it has ended."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        log.debug("process %d had ended", process.pid)


def _work(settings: NodeSettings, address: str, key: bytes, ready: Connection) -> None:
    # Imported here: the process that starts workers needs no torch.
    from fednnunet.node.worker import run_node_worker

    run_node_worker(settings, address, key, lambda: ready.send_bytes(b"ready"))
