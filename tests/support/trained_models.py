"""Small networks that were trained a little, in a results folder as nnU-Net leaves it; made once for all tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import SimpleITK as sitk

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from fednnunet.datasets.raw import RawDataset

STEPS = 42
"""Of Adam: enough that boxes are found, with errors at their edges."""


@dataclass(frozen=True)
class TrainedFolders:
    """Where things lie.

    Attributes:
        raw: the raw dataset ``Dataset101_Boxes`` (bright boxes, 6 x 40 x 40, in 3 x 1 x 1 mm).
        results: nnU-Net's results: ``Dataset101_Boxes/nnUNetTrainer__nnUNetPlans__2d`` with folds 0 and 1, and
            ``…__3d_fullres`` with fold 0.
    """

    raw: Path
    results: Path

    def model(self, configuration: str) -> Path:
        """Folder of the models of a configuration."""
        return self.results / "Dataset101_Boxes" / f"nnUNetTrainer__nnUNetPlans__{configuration}"

    def make_run(self, folder: Path, nodes: tuple[str, ...] = ("Oslo", "Porto"), configuration: str = "2d") -> Path:
        """A run's folder in which each node has a copy of the models of a configuration; returns it."""
        for node in nodes:
            target = folder / "nodes" / node / "nnUNet_results" / "Dataset101_Boxes" / self.model(configuration).name
            shutil.copytree(self.model(configuration), target)
        return folder


@pytest.fixture(scope="session")
def trained_folders(tmp_path_factory: pytest.TempPathFactory) -> TrainedFolders:
    """:class:`TrainedFolders`, which the first process of pytest-xdist to need them makes; not to be changed."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    root, made = folder / "trained", folder / "trained.made"
    with (folder / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(root, ignore_errors=True)  # of a process that was ended
            root.mkdir()
            _make(root)
            made.touch()
    return TrainedFolders(root / "raw" / "Dataset101_Boxes", root / "nnUNet_results")


def _make(root: Path) -> None:
    """Train below ``root``."""
    import torch

    from fednnunet.datasets.raw import read_dataset
    from tests.conftest import write_boxes
    from tests.support.small_trainers import small_trainers

    dataset = read_dataset(write_boxes(root / "raw"), "A")
    with small_trainers(root, dataset) as build:
        for configuration, fold in (("2d", 0), ("2d", 1), ("3d_fullres", 0)):
            trainer = build(configuration, fold, dataset.dataset_json)
            torch.manual_seed(fold)
            _train(trainer, dataset)
            trainer.current_epoch = 1
            trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
            trainer._save_debug_information()
            (Path(trainer.output_folder) / "progress.png").touch()
            (Path(trainer.output_folder) / "validation").mkdir()
            (Path(trainer.output_folder) / "validation" / "summary.json").write_text("{}")
            base = Path(trainer.output_folder_base)
            shutil.copy(root / "nnUNet_preprocessed" / dataset.name / "nnUNetPlans.json", base / "plans.json")
            for name in ("dataset.json", "dataset_fingerprint.json"):
                shutil.copy(root / "nnUNet_preprocessed" / dataset.name / name, base / name)


def _train(trainer: nnUNetTrainer, dataset: RawDataset) -> None:
    """Each step sees one case, whole, normalised as nnU-Net does: its slices as a batch, or the volume."""
    import torch

    trainer.set_deep_supervision_enabled(False)
    is_2d = trainer.configuration_name == "2d"
    steps = []
    for case in dataset.cases:
        image = torch.from_numpy(_normalised(case.images[0]))
        label = torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(str(case.label)))).long()
        steps.append((image[:, None], label) if is_2d else (image[None, None], label[None]))
    optimizer = torch.optim.Adam(trainer.network.parameters(), 0.01)
    weights = torch.tensor([1.0, 5.0])
    trainer.network.train()
    for step in range(STEPS):
        image, label = steps[step % len(steps)]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(trainer.network(image), label, weights).backward()
        optimizer.step()
    trainer.set_deep_supervision_enabled(True)


def _normalised(path: Path) -> np.ndarray:
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return ((image - image.mean()) / image.std()).astype(np.float32)
