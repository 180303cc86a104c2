"""What a process has only once and each of its nodes needs as its own."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednnunet.processes import open_output, show_in


class ProcessState:
    """A node's environment variables, generators of random numbers, settings of torch, and log file.

    nnU-Net finds its folders by environment variables; augmentation and loaders draw from the global generators.

    Args:
        log: file for everything that is printed while the node computes.
        threads: number of threads of torch.
    """

    def __init__(self, log: Path, threads: int) -> None:
        self._log = open_output(log, 0o644)
        self._threads = threads
        self._environment = dict(os.environ)
        self._generators = _generators()
        self._cudnn = _cudnn()

    def keep(self) -> None:
        """Note how the process is now: another node follows."""
        self._threads = torch.get_num_threads()
        self._environment = dict(os.environ)
        self._generators = _generators()
        self._cudnn = _cudnn()

    def restore(self) -> None:
        """Make the process as it was when this node was set aside."""
        show_in(self._log)
        for variable in os.environ.keys() - self._environment.keys():
            del os.environ[variable]
        os.environ.update(self._environment)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = self._cudnn
        python, numpy, main, cuda = self._generators
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(main)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _generators() -> tuple[Any, Any, torch.Tensor, list[torch.Tensor]]:
    """States of the global generators of Python, numpy, torch, and torch on each GPU that is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state(), cuda


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
