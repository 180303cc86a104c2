"""What every process of a node does when it starts: quiet, own log file, ends with its parent."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from fednnunet.processes import LOG_FORMAT, end_with_parent, redirect_output

PR_SET_PDEATHSIG = 1
"""``prctl``: the signal that a process gets when its parent dies."""


def set_up_process(log: Path, threads: int) -> None:
    """Make this a process of a node.

    Args:
        log: file that takes everything that nnU-Net and its libraries print.
        threads: of torch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    # Lightning waits for the end of a batch on SIGTERM, which between rounds never comes; files are whole at any time.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    _log_to(log)
    end_with_parent()
    if sys.platform == "linux":
        # As in nnU-Net's own command: its augmentation forks. (This process inherits forkserver as its default.)
        multiprocessing.set_start_method("fork", force=True)
        os.register_at_fork(after_in_child=_die_with_parent)
    torch.set_num_threads(threads)
    # tqdm's default lock is a named semaphore, which a worker that is ended by a signal would leave behind.
    tqdm.set_lock(threading.RLock())


def _log_to(path: Path) -> None:
    redirect_output(path, 0o644)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    logging.basicConfig(
        level=logging.INFO,
        format=LOG_FORMAT,
        stream=sys.stdout,
        force=True,
    )
    warnings.simplefilter("default")


def _die_with_parent() -> None:
    """For the processes that augmentation forks: they would wait for ever for a worker that was killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
