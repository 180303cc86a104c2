"""3d_lowres, and the cascade that refines it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from fednnunet.run_files import PERSONAL_RESULTS
from tests.conftest import write_boxes
from tests.integration.conftest import Train, result_folder

COMMON = (
    "dataset.centres=[{name: Oslo, dataset: 301}, {name: Porto, dataset: 302},"
    " {name: Riga, dataset: 303, external: true}]",
    "strategy=ffe",
    "trainer.class=nnUNetTrainerNoMirroring",  # segments eight times as fast
    "trainer.epochs=1",
    "trainer.iterations=2",
    "model.overrides.UNet_max_features_3d=8",
    "model.overrides.UNet_min_batch_size=2",
    "gpu_memory.gb=0.005",  # so small that the full resolution needs a low one before it
)
LOWRES = "configuration=3d_lowres"
CASCADE = "configuration=3d_cascade_fullres"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two centres with volumes, and an external one."""
    folder = tmp_path_factory.mktemp("volumes") / "raw"
    for number, (name, shape) in enumerate((("Oslo", (40, 48, 48)), ("Porto", (40, 48, 44)), ("Riga", (40, 48, 48)))):
        cases = 1 if name == "Riga" else 5
        write_boxes(folder, f"Dataset30{number + 1}_{name}", cases, shape, (1.0, 1.0, 1.0), seed=number)
    return folder


@pytest.fixture(scope="module")
def lowres(volumes: Path, train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All folds of 3d_lowres."""
    run = tmp_path_factory.mktemp("lowres") / "run"
    result = train(run, *COMMON, LOWRES, "fold=[0,1,2,3,4]", raw=volumes)
    assert result.returncode == 0, result.stdout + result.stderr
    return run


def test_cascade_refines_the_low_resolution(volumes: Path, lowres: Path, train: Train, tmp_path: Path) -> None:
    assert set(pd.read_csv(lowres / "cases.csv").node) == {"Oslo", "Porto", "Riga"}
    run = tmp_path / "run"
    tuned = "strategy.fine_tune_epochs=1"
    result = train(run, *COMMON, CASCADE, f"init.previous_stage={lowres}", tuned, raw=volumes, apart=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "external centres are left out" in result.stderr
    assert set(pd.read_csv(run / "cases.csv").node) == {"Oslo", "Porto"}
    (own,) = (run / "nodes" / "Porto" / PERSONAL_RESULTS).glob("*/*/fold_0")
    for folder in (result_folder(run, "Porto"), own):
        final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
        # The image, and the low resolution's segmentation of the one label.
        assert final["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == 2


def test_cascade_says_what_it_needs(volumes: Path, lowres: Path, train: Train, tmp_path: Path) -> None:
    without = train(tmp_path / "a", *COMMON, CASCADE, raw=volumes)
    assert without.returncode == 2
    assert "init.previous_stage=" in without.stderr
    for path in lowres.glob("nodes/Porto/nnUNet_results/*/*/predicted_next_stage/*/case_002*"):
        path.unlink()
    missing = train(tmp_path / "b", *COMMON, CASCADE, f"init.previous_stage={lowres}", raw=volumes)
    assert missing.returncode == 2
    for part in ("node Porto", "3d_lowres segmentations of 1 of 5 cases are missing", "fold=[0,1,2,3,4]"):
        assert part in missing.stderr


def test_images_too_small_for_a_cascade_are_told(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", LOWRES, "model.overrides.UNet_max_features_3d=8")
    assert result.returncode == 2
    assert "nnU-Net plans only 2d, 3d_fullres for these images" in result.stderr
