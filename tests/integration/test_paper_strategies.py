"""Whole federations, from raw files to tables, by the command that users type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from fednnunet.datasets.splits import crossval_splits
from fednnunet.fingerprint.bins import BINS
from tests.integration.conftest import CENTRES, REPORTED, Train, result_folder

pytestmark = pytest.mark.xdist_group("finished")
STRATEGIES = ("local", "asym", "ffe", "centralized")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_writes_its_tables_and_checkpoints(finished: Callable[[str], Path], strategy: str) -> None:
    run = finished(strategy)
    nodes = ["centralized"] if strategy == "centralized" else list(CENTRES)
    rounds = pd.read_csv(run / "rounds.csv")
    assert list(rounds.columns) == [
        "strategy",
        "round",
        "node",
        "train_loss",
        "val_loss",
        "pseudo_dice",
        "seconds_train",
        "seconds_exchange",
        "bytes_up",
        "bytes_down",
        "gpu_memory_gib",
        "update_norm",
    ]
    assert (rounds.update_norm > 0).all() == (strategy in ("asym", "ffe"))
    assert sorted(zip(rounds["round"], rounds.node, strict=True)) == sorted((r, n) for r in (1, 2) for n in nodes)
    assert np.isfinite(rounds[["train_loss", "val_loss"]]).all(axis=None)
    assert (rounds.bytes_up > 0).all() == (strategy in ("asym", "ffe"))

    cases = pd.read_csv(run / "cases.csv")
    assert list(cases.columns) == [
        *("strategy", "node", "model", "fold", "case", "label"),
        *("dsc", "hd95", "surface_dsc", "volume_error", "empty"),
    ]
    # Fold 0's held-out cases of every centre, by number and never by name; all cases of the external centre.
    models = [*nodes, *(["ensemble"] if len(nodes) > 1 else [])]
    riga = 2 * len(models)  # with every node's model, and all of them together
    assert cases.groupby("node")["case"].count().to_dict() == {"Oslo": 2, "Porto": 2, "Lund": 1, "Riga": riga}
    assert set(cases[cases.node == "Riga"].model) == set(models)
    held_out = crossval_splits([f"case_{number:03d}" for number in range(8)])[0]["val"]
    assert sorted(cases[cases.node == "Porto"]["case"]) == sorted(int(name[-3:]) for name in held_out)
    assert cases.dsc.between(0, 1).all()
    assert (cases.hd95 >= 0).all()

    summary = pd.read_csv(run / "summary.csv")
    assert list(summary.columns) == [
        *("strategy", "node", "fold", "n_cases", "dsc", "hd95", "surface_dsc", "volume_error", "n_empty")
    ]
    expected = cases[cases.model != "ensemble"].groupby("node").dsc.mean()
    assert summary.set_index("node").dsc.to_dict() == pytest.approx(expected.to_dict())

    for node in nodes:
        files = {path.name for path in result_folder(run, node).iterdir()}
        assert {"checkpoint_final.pth", "checkpoint_best.pth", "validation"} <= files
        assert not any(name.startswith(("checkpoint_latest", "checkpoint_round")) for name in files)
        assert {"plans.json", "dataset.json"} <= {p.name for p in result_folder(run, node).parent.iterdir()}
    assert strategy not in REPORTED or (run / "report.html").stat().st_size > 10_000
    assert json.loads((run / "run.json").read_text())["seconds"] > 0
    assert "case_00" not in (run / "train.log").read_text() + (run / "cases.csv").read_text()


def test_ffe_plans_one_network_and_ends_with_one_model(finished: Callable[[str], Path]) -> None:
    run = finished("ffe")
    plans = json.loads((run / "plans.json").read_text())
    configurations = {json.dumps(plans[node]["configurations"], sort_keys=True) for node in CENTRES}
    assert len(configurations) == 1
    states = [
        torch.load(result_folder(run, node) / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for node in CENTRES
    ]
    for name in states[0]:
        assert all(torch.equal(state[name], states[0][name]) for state in states), name


def test_ffe_plans_what_nnunet_plans_on_the_pooled_images(finished: Callable[[str], Path]) -> None:
    """The heart of it: from what the nodes tell, the server makes the fingerprint of all images."""
    ffe = json.loads((finished("ffe") / "plans.json").read_text())["Oslo"]
    pooled = json.loads((finished("centralized") / "plans.json").read_text())["centralized"]
    key = "foreground_intensity_properties_per_channel"
    for channel, statistics in pooled.pop(key).items():
        bin_width = (statistics["max"] - statistics["min"]) / BINS
        assert ffe[key][channel] == pytest.approx(statistics, rel=2e-6, abs=2 * bin_width)
    del ffe[key]
    assert {ffe.pop("dataset_name"), pooled.pop("dataset_name")} == {"Dataset201_Oslo", "Dataset999_Pooled"}
    assert json.dumps(ffe, sort_keys=True) == json.dumps(pooled, sort_keys=True)


def test_what_a_node_tells_of_its_images_may_be_quantised(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    centres = "dataset.centres=[{name: Oslo, dataset: 201}, {name: Lund, dataset: 203}]"
    result = train(run, "strategy=ffe", "fingerprint.precision=quantised", "trainer.epochs=1", centres)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads((run / "federated_fingerprint.json").read_text())
    assert all(float(f"{size:.2g}") == size for spacing in told["spacings"] for size in spacing)


def test_asym_keeps_own_plans_and_averages_what_matches(finished: Callable[[str], Path]) -> None:
    run = finished("asym")
    plans = json.loads((run / "plans.json").read_text())
    patches = {node: plans[node]["configurations"]["2d"]["patch_size"] for node in CENTRES}
    assert patches["Porto"] != patches["Oslo"]
    shared = json.loads((run / "run.json").read_text())["shared_fraction"]
    assert all(0 < fraction < 1 for node, fraction in shared.items() if node == "Porto")
    states = {
        node: torch.load(result_folder(run, node) / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for node in CENTRES
    }
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(states["Oslo"][first], states["Porto"][first])
    own = set(states["Porto"]) - set(states["Oslo"])
    assert own, "the larger network has layers of its own"


def test_local_nodes_share_nothing(finished: Callable[[str], Path]) -> None:
    run = finished("local")
    first = "encoder.stages.0.0.convs.0.conv.weight"
    weights = [
        torch.load(result_folder(run, node) / "checkpoint_final.pth", weights_only=False)["network_weights"][first]
        for node in ("Oslo", "Lund")
    ]
    assert not torch.equal(*weights)


def test_nnunet_predict_gives_the_segmentation_that_was_scored(
    finished: Callable[[str], Path], raw: Path, tmp_path: Path
) -> None:
    run = finished("asym")
    scored = sorted((result_folder(run, "Porto") / "validation").glob("*.nii.gz"))
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    for path in scored:
        name = path.name.replace(".nii.gz", "_0000.nii.gz")
        (images / name).symlink_to(raw / "Dataset202_Porto" / "imagesTr" / name)
    folders = {
        name: str(run / "nodes" / "Porto" / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    tool = Path(sys.executable).with_name("nnUNetv2_predict")
    arguments = f"-i {images} -o {output} -d Dataset202_Porto -c 2d -f 0 -device cpu -npp 0 -nps 0".split()
    subprocess.run([tool, *arguments], check=True, capture_output=True, env={**os.environ, **folders}, timeout=300)
    assert len(scored) == 2
    for path in scored:
        ours, theirs = sitk.ReadImage(str(path)), sitk.ReadImage(str(output / path.name))
        assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
        assert ours.GetSpacing() == theirs.GetSpacing()


def test_finished_run_is_not_trained_again(finished: Callable[[str], Path], train: Train) -> None:
    run = finished("local")
    before = (run / "rounds.csv").stat().st_mtime_ns
    result = train(run, "strategy=local")
    assert result.returncode == 0
    assert "Oslo" in result.stdout
    assert (run / "rounds.csv").stat().st_mtime_ns == before


def test_a_folder_of_another_configuration_is_refused(finished: Callable[[str], Path], train: Train) -> None:
    result = train(finished("local"), "strategy=local", "seed=3")
    assert result.returncode == 2
    assert "holds a run with seed=0, not 3" in result.stderr


def test_wandb_gets_a_run_for_the_server_and_one_a_node(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    centres = "dataset.centres=[{name: Oslo, dataset: 201}, {name: Riga, dataset: 204, external: true}]"
    result = train(tmp_path / "run", "strategy=local", "logger=wandb", "trainer.epochs=1", centres)
    assert result.returncode == 0, result.stdout + result.stderr
    runs = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 1 + 1 + 1  # the external centre is a node, too
    assert all(next(run.glob("*.wandb")).stat().st_size > 0 for run in runs)
    assert "wandb:" not in result.stdout + result.stderr, "libraries are quiet"


def test_every_model_is_scored_at_every_centre(train: Train, tmp_path: Path) -> None:
    """Porto's network differs from the others' and is scored on their images, from where they lie."""
    run = tmp_path / "run"
    result = train(run, "strategy=local", "evaluation.cross_centre=true", "trainer.epochs=1", report=True)
    assert result.returncode == 0, result.stdout + result.stderr
    cases = pd.read_csv(run / "cases.csv")
    nodes = set(CENTRES)
    pairs = {(model, node) for model in nodes for node in nodes | {"Riga"}} | {("ensemble", "Riga")}
    assert set(zip(cases.model, cases.node, strict=True)) == pairs
    numbers = cases.groupby(["node", "model"])["case"].apply(sorted)
    for node in nodes:
        assert all(numbers[node][model] == numbers[node][node] for model in nodes), "the same held-out cases"
    summary = pd.read_csv(run / "summary.csv").set_index("node")
    own = cases[cases.node == cases.model].groupby("node").dsc.mean()
    assert summary.loc[sorted(nodes), "dsc"].to_dict() == pytest.approx(own.to_dict())
    assert (run / "figures" / "cross_centre.svg").is_file()
