"""Workers of nodes as in a run, but for two things that take seconds and that a few tests of their own show."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from fednnunet.node.launcher import WorkerAddress
from fednnunet.node.launcher import _work as work_as_in_a_run
from fednnunet.node.settings import WorkerPlan

FOREGROUND_VOXELS = 1e5
"""In the place of nnU-Net's 1e8 (``tests/fingerprint/test_extract.py``), of which these images have far fewer."""


def work(plan: WorkerPlan, addresses: Mapping[int, WorkerAddress], ready: Connection) -> None:
    """Entry of a worker that samples few voxels; ``progress.png`` stays empty (``tests/training/test_epochs.py``)."""
    from fednnunet.fingerprint import extract
    from fednnunet.training import checkpoint

    extract.MAX_FOREGROUND_VOXELS = FOREGROUND_VOXELS
    checkpoint.plot_progress = lambda trainer: (Path(trainer.output_folder) / "progress.png").touch()
    work_as_in_a_run(plan, addresses, ready)
