"""The check of a node's data before it joins: the one that every run begins with, which then finds it done."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.supervision import log_to, show_warnings, terminal
from fednnunet.errors import DataError, FednnUNetError
from fednnunet.processes import end_with_parent, sigint_ignored_by_children

if TYPE_CHECKING:
    from fednnunet.datasets.image_checks import CheckedDataset

LOG_FILE = "worker.log"
"""Log of the processes that touch images: this check, and the worker."""
QUIET_SECONDS = 5.0
"""A check that takes longer is announced."""
POLL_SECONDS = 1.0


def check_data(node_file: NodeFile, ended: threading.Event, notify: Callable[[str], None]) -> None:
    """Check description, splits and every image of a node, unless the files are as an earlier check has found them.

    That is done in a process of its own: this one lives for months, and needs no images.

    Args:
        node_file: configuration of the node.
        ended: set by a signal, which ends the check.
        notify: gets a line for the operator.

    Raises:
        DataError: the data cannot be trained on; names the file, and what is wrong.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check, args=(node_file, sender), name="data check")
    with sigint_ignored_by_children():  # this one ends it
        process.start()
    sender.close()
    started, is_announced = time.monotonic(), False
    try:
        while not ended.is_set() and not wait([receiver], POLL_SECONDS):
            if not is_announced and time.monotonic() - started > QUIET_SECONDS:
                is_announced = True
                notify("the images are checked before the node joins; once, as long as the files stay as they are")
        problem = "" if ended.is_set() else _result(receiver, process, node_file)
    finally:
        process.terminate()
        process.join()
    if problem:
        raise DataError(problem)


def _result(receiver: Connection, process: BaseProcess, node_file: NodeFile) -> str:
    try:
        return receiver.recv_bytes().decode()
    except EOFError:
        process.join()
        return f"the check of the data ended (exit code {process.exitcode}); see {node_file.folder / LOG_FILE}"


def _check(node_file: NodeFile, sender: Connection) -> None:
    """Entry of the check's process; sends what is wrong, or nothing."""
    print_line = terminal()
    log_to(node_file.folder / LOG_FILE)
    show_warnings(print_line)
    end_with_parent()
    try:
        check_dataset(node_file)
    except FednnUNetError as error:
        sender.send_bytes(str(error).encode())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sender.send_bytes(f"centre {node_file.name}: {where}{error.strerror or error}".encode())
    else:
        sender.send_bytes(b"")


def check_dataset(node_file: NodeFile) -> CheckedDataset:
    """Check description, splits and every image of a node, in this process.

    Raises:
        DataError: as :func:`check_data`.
    """
    # Imported here: the process that supervises reads no images.
    from fednnunet.datasets.image_checks import check_images_once
    from fednnunet.datasets.raw import find_dataset, read_dataset
    from fednnunet.datasets.splits import splits_of
    from fednnunet.datasets.staging import cache_of

    name = node_file.name
    dataset = read_dataset(find_dataset(node_file.data, node_file.raw_folder, name), name, node_file.external)
    if not node_file.external:
        splits_of(dataset, name, ["all"])  # which folds a run needs, its server says
    return check_images_once(dataset, name, node_file.image_headers, cache_of(node_file.folder / "cache", dataset))
