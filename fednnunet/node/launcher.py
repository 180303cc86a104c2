"""Start and end node workers on this machine."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

import psutil

from fednnunet.errors import NodeError
from fednnunet.files import write_atomically
from fednnunet.listing import join_nodes
from fednnunet.node.settings import WorkerPlan
from fednnunet.processes import children_of, sigint_ignored_by_children

log = logging.getLogger(__name__)

WORKER_IMPORTS = "fednnunet.node.worker_imports"
MEMORY_SAMPLE_SECONDS = 1.0
MEMORY_SHARE = 0.01
"""Most of a core's time that watching memory takes: 30 ms per GB are counted page by page."""
SOCKETS_PREFIX = "fednnunet-"
SOCKETS_FILE = ".sockets"
"""In a node's folder, or beside those of a run's: where its sockets are."""
END_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerAddress:
    """Where a worker listens, and the key it shares with its relay.

    Attributes:
        socket: path of the worker's socket.
        key: the key.
        key_file: file with the key, readable by its owner alone.
    """

    socket: str
    key: bytes
    key_file: Path

    @property
    def node_config(self) -> dict[str, str]:
        """Flower's node configuration: what the relay needs to find the worker."""
        return {"socket": self.socket, "key-file": str(self.key_file)}


def worker_address(folder: Path, name: str) -> WorkerAddress:
    """A new address in ``folder``, which :func:`socket_folder` made."""
    key, key_file = secrets.token_bytes(32), folder / f"{name}.key"
    key_file.touch(mode=0o600)
    key_file.write_bytes(key)
    return WorkerAddress(str(folder / f"{name}.sock"), key, key_file)


@contextlib.contextmanager
def socket_folder(owner: Path) -> Iterator[Path]:
    """A new folder for sockets and keys, its user's alone (0700); it is removed at the end.

    It lies outside of the run's or node's own folder, which may be too deep: AF_UNIX paths hold about 100 characters.
    One that a killed process has left is removed now.

    Args:
        owner: folder that is this process's alone, where it is noted which folder it uses.
    """
    note = owner / SOCKETS_FILE
    if note.is_file():
        _remove_left_behind(Path(note.read_text(encoding="utf-8")))
    folder = Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX))
    try:
        write_atomically(note, str(folder))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink(missing_ok=True)


def _remove_left_behind(folder: Path) -> None:
    """Remove a folder of sockets, unless it is not one, or another user's by now."""
    with contextlib.suppress(OSError):
        status = folder.lstat()
        if folder.name.startswith(SOCKETS_PREFIX) and stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            shutil.rmtree(folder)


def worker_context(*modules: str) -> ForkServerContext:
    """Context whose processes are forked from a server that has imported ``modules``, and with them torch and nnU-Net.

    The server starts now, and imports while this process goes on.
    """
    os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it when it is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    with sigint_ignored_by_children():
        forkserver.ensure_running()
    return context


class NodeProcesses:
    """Worker processes that compute for nodes, forked from a server that has imported torch and nnU-Net once.

    A context manager: entering waits until every worker listens, leaving ends them all.

    Args:
        workers: which nodes each worker computes for.

    Attributes:
        addresses: Flower's node id to the ``node_config`` of its relay.
        peak_memory_gib: largest memory use of this process and all that it started, together, GiB.
    """

    def __init__(self, workers: Sequence[WorkerPlan]) -> None:
        self.workers = workers
        self.addresses: dict[int, dict[str, str]] = {}
        self.peak_memory_gib = 0.0
        self._processes: list[BaseProcess] = []
        self._stop = threading.Event()
        self._sockets = contextlib.ExitStack()

    def __enter__(self) -> NodeProcesses:
        sockets = self._sockets.enter_context(socket_folder(self.workers[0].first.folder.parent))
        try:
            self._start(sockets)
        except BaseException:
            self._end()
            raise
        threading.Thread(target=self._watch_memory, name="memory", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, sockets: Path) -> None:
        context = worker_context(WORKER_IMPORTS)
        ready: list[Connection] = []
        for plan in self.workers:
            names = [settings.name for settings in plan.nodes.values()]
            addresses = {node: worker_address(sockets, str(node)) for node in plan.nodes}
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_work, args=(plan, addresses, sender), name=f"worker of {join_nodes(names)}"
            )
            try:
                process.start()
            except (ConnectionError, EOFError) as error:
                raise NodeError(
                    names[0],
                    "its worker cannot be started: the process that it is forked from ended, which imports torch and "
                    "nnU-Net; see above, or look for a lack of memory",
                ) from error
            sender.close()
            self._processes.append(process)
            ready.append(receiver)
            shared = {"nodes-of-worker": join_nodes(names)} if len(names) > 1 else {}
            for node, settings in plan.nodes.items():
                self.addresses[node] = {"name": settings.name} | addresses[node].node_config | shared
        for plan, process, receiver in zip(self.workers, self._processes, ready, strict=True):
            wait([receiver, process.sentinel])
            try:
                receiver.recv_bytes()
            except EOFError:
                first = plan.first
                raise NodeError(first.name, f"its worker ended at its start; see {first.folder / 'node.log'}") from None

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
        self._sockets.close()

    def _watch_memory(self) -> None:
        pause = MEMORY_SAMPLE_SECONDS
        while not self._stop.wait(pause):
            before = time.thread_time()
            self.peak_memory_gib = max(self.peak_memory_gib, memory_of_tree(os.getpid()) / 2**30)
            pause = max(MEMORY_SAMPLE_SECONDS, (time.thread_time() - before) / MEMORY_SHARE)


def memory_of_tree(pid: int) -> int:
    """Bytes of main memory of a process and all that it started."""
    total = 0
    for process in (psutil.Process(pid), *children_of(pid)):
        try:
            # Proportional set size: pages that forked workers share count once.
            total += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
        except psutil.Error:
            continue  # has just ended
    return total


def _kill(process: psutil.Process) -> None:
    """Kill ``process`` unless it has ended."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        log.debug("process %d had ended", process.pid)


def _work(plan: WorkerPlan, addresses: Mapping[int, WorkerAddress], ready: Connection) -> None:
    # Imported here: the process that starts workers needs no torch.
    from fednnunet.node.shared_worker import run_shared_worker

    run_shared_worker(plan, addresses, lambda: ready.send_bytes(b"ready"))
