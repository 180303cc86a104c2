"""What strategies of Flower, and nodes of different tasks, come to with real training; the rest is in tests/server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from tests.conftest import write_boxes
from tests.integration.conftest import Train, final_weights

TWO_NODES = ("dataset.centres=[{name: Oslo, dataset: 201}, {name: Lund, dataset: 203}]", "trainer.iterations=2")
FIRST = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.mark.parametrize("strategy", ["fedprox", "fedadam"])
def test_nodes_end_with_one_model(train: Train, tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    result = train(run, f"strategy={strategy}", *TWO_NODES)
    assert result.returncode == 0, result.stdout + result.stderr
    rounds = pd.read_csv(run / "rounds.csv")
    assert set(rounds.strategy) == {strategy}
    assert rounds[["train_loss", "val_loss"]].notna().all(axis=None)
    ours, theirs = final_weights(run, "Oslo"), final_weights(run, "Lund")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not list(run.glob("strategy_fold_*"))


@pytest.fixture
def two_tasks(tmp_path: Path) -> Path:
    """Livers in CT with a tumour inside, and tumours in MRI of two channels."""
    rng = np.random.default_rng(0)
    for name, channels, labels in (
        ("Dataset401_Livers", {"0": "CT"}, {"background": 0, "liver": 1, "tumour": 2}),
        ("Dataset402_Tumours", {"0": "T1", "1": "T2"}, {"background": 0, "tumour": 1}),
    ):
        folder = tmp_path / "raw" / name
        write_boxes(folder.parent, name, cases=5)
        for label in sorted((folder / "labelsTr").iterdir()):
            case = label.name.removesuffix(".nii.gz")
            image = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
            if "1" in channels:
                sitk.WriteImage(image + float(rng.normal()), str(folder / "imagesTr" / f"{case}_0001.nii.gz"))
            else:
                values = sitk.GetArrayFromImage(sitk.ReadImage(str(label)))
                z, y, x = np.argwhere(values)[len(np.argwhere(values)) // 2]
                values[z, y - 2 : y + 2, x - 2 : x + 2] = 2
                changed = sitk.GetImageFromArray(values)
                changed.CopyInformation(image)
                sitk.WriteImage(changed, str(label))
        description = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(description | {"channel_names": channels, "labels": labels}))
    return tmp_path / "raw"


def test_different_tasks_train_together(train: Train, two_tasks: Path, tmp_path: Path) -> None:
    centres = "dataset.centres=[{name: Livers, dataset: 401}, {name: Tumours, dataset: 402}]"
    refused = train(tmp_path / "refused", "strategy=asym", centres, raw=two_tasks)
    assert refused.returncode == 2
    assert "strategy.heterogeneous_tasks=true" in refused.stderr

    run = tmp_path / "run"
    result = train(run, "strategy=asym", centres, "strategy.heterogeneous_tasks=true", raw=two_tasks)
    assert result.returncode == 0, result.stdout + result.stderr
    livers, tumours = final_weights(run, "Livers"), final_weights(run, "Tumours")
    assert livers[FIRST].shape[1] == 1
    assert tumours[FIRST].shape[1] == 2
    assert livers["decoder.seg_layers.0.weight"].shape[0] == 3
    second = FIRST.replace("convs.0", "convs.1")
    assert torch.equal(livers[second], tumours[second]), "what matches is shared"
    cases = pd.read_csv(run / "cases.csv")
    assert set(cases[cases.node == "Livers"].label) == {"liver", "tumour"}
    assert set(cases[cases.node == "Tumours"].label) == {"tumour"}
