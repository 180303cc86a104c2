"""A federation with each strategy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from tests.conftest import write_boxes
from tests.integration.conftest import CENTRES, Train, final_weights, result_folder

TWO_NODES = ("dataset.centres=[{name: Oslo, dataset: 201}, {name: Lund, dataset: 203}]", "trainer.iterations=2")
FIRST = "encoder.stages.0.0.convs.0.conv.weight"


REPEATED = ("fedyogi", "fedmedian", "fedtrimmedavg")
"""In the way of fedadam and krum."""


@pytest.mark.parametrize(
    "strategy",
    ["fedprox", "fedavgm", "fedadam", "krum", *(pytest.param(name, marks=pytest.mark.nightly) for name in REPEATED)],
)
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


def test_what_is_kept_local_is_not_exchanged(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(run, "strategy=ffe", "strategy.aggregation.keep_local=[seg_layers,norm]", *TWO_NODES)
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = final_weights(run, "Oslo"), final_weights(run, "Lund")
    assert torch.equal(ours[FIRST], theirs[FIRST])
    for kept in ("decoder.seg_layers.0.weight", FIRST.replace("conv.weight", "norm.weight")):
        assert not torch.equal(ours[kept], theirs[kept]), kept


def test_layers_matched_by_resolution(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("strategy.aggregation.matching=resolution", "strategy.aggregation.average_over=groups")
    result = train(run, "strategy=asym", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    head = (
        final_weights(run, "Porto")["decoder.seg_layers.3.weight"],
        final_weights(run, "Oslo")["decoder.seg_layers.2.weight"],
    )
    assert torch.equal(*head), "the heads of the full resolution are one"


def test_all_nodes_begin_with_the_same_values_whatever_their_order(train: Train, tmp_path: Path) -> None:
    """With a learning rate of nothing, what nodes began with is what they end with."""
    frozen = ("trainer.initial_lr=1e-12", "trainer.weight_decay=0", "trainer.epochs=1", "strategy=asym")
    oslo, porto = "{name: Oslo, dataset: 201}", "{name: Porto, dataset: 202}"
    states = {}
    for name, centres in {"once": f"{oslo}, {porto}", "again": f"{porto}, {oslo}"}.items():
        result = train(tmp_path / name, *frozen, f"dataset.centres=[{centres}]")
        assert result.returncode == 0, result.stdout + result.stderr
        states[name] = {node: final_weights(tmp_path / name, node) for node in ("Oslo", "Porto")}
    ours, theirs = states["once"].values()
    shared = [layer for layer in ours if layer in theirs and ours[layer].shape == theirs[layer].shape]
    assert FIRST in shared
    assert set(ours) - set(shared), "the networks differ"
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in shared)
    for node, state in states["once"].items():
        assert all(torch.equal(state[layer], states["again"][node][layer]) for layer in state)


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


def test_several_epochs_a_round(train: Train, tmp_path: Path) -> None:
    """Five epochs, two per round: three rounds, the last of one epoch."""
    run = tmp_path / "run"
    options = ("strategy=ffe", "strategy.local_epochs=2", "trainer.epochs=5", *TWO_NODES)
    result = train(run, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(pd.read_csv(run / "rounds.csv")["round"].unique()) == [1, 2, 3]
    facts = json.loads((run / "run.json").read_text())
    assert (facts["rounds"], facts["iterations"]) == (3, 4)
    final = torch.load(result_folder(run, "Oslo") / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == 5
    assert len(final["logging"]["train_losses"]) == 5


def test_some_nodes_a_round(train: Train, tmp_path: Path) -> None:
    """Two of three nodes in each of five rounds; the schedule of all follows the rounds."""
    run = tmp_path / "run"
    result = train(run, "strategy=asym", "strategy.aggregation.fraction_train=0.6", "trainer.epochs=5")
    assert result.returncode == 0, result.stdout + result.stderr
    rounds = pd.read_csv(run / "rounds.csv")
    assert rounds.groupby("round").node.nunique().to_dict() == dict.fromkeys(range(1, 6), 2)
    assert set(pd.read_csv(run / "cases.csv").node) == {*CENTRES, "Riga"}
    rates: dict[int, set[float]] = {}
    for node in CENTRES:
        mine = set(rounds[rounds.node == node]["round"])
        final = torch.load(result_folder(run, node) / "checkpoint_final.pth", weights_only=False)
        assert final["current_epoch"] == 5
        logged = final["logging"]
        assert {len(values) for values in logged.values()} == {5}
        assert {place + 1 for place, loss in enumerate(logged["train_losses"]) if not np.isnan(loss)} == mine
        assert not np.isnan(logged["ema_fg_dice"]).any()
        for server_round in mine:
            rates.setdefault(server_round, set()).add(logged["lrs"][server_round - 1])
    assert all(len(rate) == 1 for rate in rates.values())
    assert [min(rates[r]) for r in sorted(rates)] == sorted((min(rate) for rate in rates.values()), reverse=True)
    last = rounds[rounds["round"] == 5].node
    absent = (set(CENTRES) - set(last)).pop()
    assert torch.equal(final_weights(run, absent)[FIRST], final_weights(run, last.iloc[0])[FIRST]), (
        "it has the last average, too"
    )
