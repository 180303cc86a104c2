"""Small real data in nnU-Net's raw format, shared by all tests."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many tests run at a time as there are cores; more threads spin
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a command takes more all the same, they do not

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import settings

from fednnunet.node.launcher import WORKER_IMPORTS
from tests.support import quick_nodes
from tests.support.command_line import fednnunet
from tests.support.run_folders import make_run, undrawn, write_run
from tests.support.trained_models import trained_folders
from tests.support.ultrasound_downloads import acouslic, aimix

__all__ = ["acouslic", "aimix", "fednnunet", "make_run", "trained_folders", "undrawn", "write_run"]  # fixtures

# Python has one server that forks processes. Whichever test starts it first, workers find torch and nnU-Net imported.
multiprocessing.set_forkserver_preload([WORKER_IMPORTS])

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

MakeDataset = Callable[..., Path]

LEVELS = {"unit", "federation", "integration", "deployment", "nightly"}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage neither while all is imported nor, later, in what is imported."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its level."""
    for item in items:
        named = LEVELS & {mark.name for mark in item.iter_markers()}
        assert len(named) < 2, f"{item.nodeid} has the levels {named}"
        if not named:
            item.add_marker(level_of(item))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep in one process what shares fixtures: a file, or files of a named group."""
    from tests.support.schedule import ByGroup

    return ByGroup(config, log)


def level_of(item: pytest.Item) -> str:
    """Level of a test that names none."""
    if "run_federation" in getattr(item, "fixturenames", ()):
        return "federation"
    folder = Path(item.location[0]).parts[1]
    return folder if folder in LEVELS else "unit"


@pytest.fixture(scope="session", autouse=True)
def _quick_nodes() -> Iterator[None]:
    """Nodes that this process starts leave out what only takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fednnunet.node.launcher._work", quick_nodes.work)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that a test gave torch end with it: sums differ in their last bits with the number of threads."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def write_case(
    folder: Path, name: str, image: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float]
) -> None:
    """One channel and label (Z, Y, X) as NIfTI, spacing in mm (Z, Y, X)."""
    for array, path in (
        (image.astype(np.float32), folder / "imagesTr" / f"{name}_0000.nii.gz"),
        (label.astype(np.uint8), folder / "labelsTr" / f"{name}.nii.gz"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = sitk.GetImageFromArray(array)
        file.SetSpacing(spacing[::-1])
        sitk.WriteImage(file, str(path))


def write_boxes(
    parent: Path,
    name: str = "Dataset101_Boxes",
    cases: int = 6,
    shape: tuple[int, int, int] = (6, 40, 40),
    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0),
    seed: int = 0,
) -> Path:
    """Write a dataset of bright boxes in noise; returns its folder."""
    folder = parent / name
    rng = np.random.default_rng(seed)
    for case in range(cases):
        image = rng.normal(100, 10, shape)
        label = np.zeros(shape, dtype=np.uint8)
        z, y, x = (int(rng.integers(0, size - size // 3)) for size in shape)
        label[z : z + shape[0] // 3, y : y + shape[1] // 3, x : x + shape[2] // 3] = 1
        image += 40 * label
        write_case(folder, f"case_{case:03d}", image, label, spacing)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """:func:`write_boxes` below the test's own folder ``raw``."""
    return partial(write_boxes, tmp_path / "raw")
