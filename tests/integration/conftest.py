"""A small federation in real files, and the command that trains it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import write_boxes
from tests.support.train_script import ROOT, run_local

CENTRES = {"Oslo": 0, "Porto": 1, "Lund": 2}
REPORTED = ("asym", "ffe")
"""Strategies whose finished runs have a report; it takes longer than their training."""


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three centres, one of another resolution, and an external one."""
    folder = tmp_path_factory.mktemp("raw")
    write_boxes(folder, "Dataset201_Oslo", cases=6, seed=1)
    write_boxes(folder, "Dataset202_Porto", cases=8, shape=(6, 80, 80), spacing=(3.0, 0.5, 0.5), seed=2)
    write_boxes(folder, "Dataset203_Lund", cases=5, seed=3)
    write_boxes(folder, "Dataset204_Riga", cases=2, seed=4)
    return folder


def command(raw: Path, run: Path, *overrides: str) -> list[str]:
    """``train.py`` on the small federation: two rounds, seconds."""
    centres = (
        "[{name: Oslo, dataset: 201}, {name: Porto, dataset: 202}, {name: Lund, dataset: 203},"
        " {name: Riga, dataset: 204, external: true}]"
    )
    settings = [
        "dataset=custom",
        f"dataset.centres={centres}",
        f"dataset.raw_folder={raw}",
        "trainer=short",
        "trainer.epochs=2",
        "trainer.iterations=3",
        "trainer.val_iterations=1",
        "model=small",
        "model.overrides.UNet_base_num_features=4",
        "model.overrides.UNet_max_features_2d=8",
        "compute.threads=1",
        f"paths.cache={raw.parent / 'cache'}",
        f"hydra.run.dir={run}",
    ]
    return [sys.executable, str(ROOT / "train.py"), *settings, *overrides]


def result_folder(run: Path, node: str, fold: int | str = 0) -> Path:
    """Where a node's checkpoints of a fold lie."""
    (folder,) = (run / "nodes" / node / "nnUNet_results").glob(f"*/*/fold_{fold}")
    return folder


def go_on(run: Path, *overrides: str) -> None:
    """``python train.py continue=…`` to its end, in this process."""
    result = run_local([sys.executable, str(ROOT / "train.py"), f"continue={run}", *overrides])
    assert result.returncode == 0, result.stdout + result.stderr


def final_weights(run: Path, node: str, fold: int | str = 0) -> dict[str, torch.Tensor]:
    """A node's network as it is saved after the last aggregation."""
    return torch.load(result_folder(run, node, fold) / "checkpoint_final.pth", weights_only=False)["network_weights"]


Train = Callable[..., subprocess.CompletedProcess[str]]


def run_apart(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.fixture(scope="session")
def train(raw: Path) -> Train:
    """Run ``train.py`` into a folder and return what it printed and its exit code.

    ``apart`` gives it a process of its own. A test that changes the environment of nodes needs one: they have that of
    when the first of them was started.
    """

    def run(
        folder: Path, *overrides: str, raw: Path = raw, apart: bool = False, report: bool = False
    ) -> subprocess.CompletedProcess[str]:
        arguments = command(raw, folder, *overrides)
        return run_apart(arguments) if apart else run_local(arguments, report)

    return run


@pytest.fixture(scope="session")
def finished(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a finished run of a strategy, some with a report; each is trained once per session.

    Files that use it are in the group ``finished`` of pytest-xdist, so that one process trains for all of them.
    """
    folders: dict[str, Path] = {}

    def of(strategy: str) -> Path:
        if strategy not in folders:
            folder = tmp_path_factory.mktemp(strategy) / "run"
            # A worker per node: what nodes that share workers are compared with.
            result = train(folder, f"strategy={strategy}", "federation.workers=4", report=strategy in REPORTED)
            assert result.returncode == 0, result.stdout + result.stderr
            folders[strategy] = folder
        return folders[strategy]

    return of
