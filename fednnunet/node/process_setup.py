"""Start of every process of a node: quiet, with its own log file, and ended with its parent."""

from __future__ import annotations

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


def set_up_process(log: Path, threads: int) -> None:
    """Set this process up as one of a node.

    Args:
        log: file for everything that nnU-Net and its libraries print.
        threads: number of threads of torch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    # Lightning waits for the end of a batch on SIGTERM, which between rounds never comes; files are whole at any time.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    _log_to(log)
    end_with_parent(forks_too=True)  # augmentation's processes would wait for ever for a worker that was killed
    if sys.platform == "linux":
        # As in nnU-Net's own command: its augmentation forks. (This process inherits forkserver as its default.)
        multiprocessing.set_start_method("fork", force=True)
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
