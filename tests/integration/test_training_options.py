"""What a user of nnU-Net can choose, in whole federations."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from tests.integration.conftest import Train, result_folder

pytestmark = pytest.mark.xdist_group("finished")

OSLO_ALONE = ("strategy=local", "dataset.centres=[{name: Oslo, dataset: 201}]")
OSLO_AND_LUND = "dataset.centres=[{name: Oslo, dataset: 201}, {name: Lund, dataset: 203}]"
FIRST = "encoder.stages.0.0.convs.0.conv.weight"


def losses(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "rounds.csv")[["round", "node", "train_loss", "val_loss", "pseudo_dice"]]


def weights(run: Path, node: str, name: str = "checkpoint_final.pth") -> dict[str, torch.Tensor]:
    return torch.load(result_folder(run, node) / name, weights_only=False)["network_weights"]


def test_local_is_nnunet_itself_bit_for_bit(
    finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of ``strategy=local`` against ``nnUNetTrainer.run_training`` on the data that the node prepared."""
    run = finished("local")
    node = run / "nodes" / "Oslo"
    prepared = (node / "nnUNet_preprocessed" / "Dataset201_Oslo" / "gt_segmentations").resolve().parents[1]
    for variable, folder in (("raw", node / "nnUNet_raw"), ("preprocessed", prepared), ("results", tmp_path)):
        monkeypatch.setenv(f"nnUNet_{variable}", str(folder))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    L.seed_everything(int.from_bytes(hashlib.sha256(b"0/Oslo").digest()[:4], "little"), verbose=False)
    plans = json.loads((run / "plans.json").read_text())["Oslo"]
    dataset_json = json.loads((result_folder(run, "Oslo").parent / "dataset.json").read_text())
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "2d", 0, dataset_json, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 3, 1
    trainer.initial_lr = 0.02
    trainer.run_training()
    torch.set_num_threads(threads)

    ours = losses(run)[losses(run).node == "Oslo"]
    theirs = trainer.logger.get_checkpoint()
    assert ours.train_loss.tolist() == [float(value) for value in theirs["train_losses"]]
    assert ours.val_loss.tolist() == [float(value) for value in theirs["val_losses"]]
    assert ours.pseudo_dice.tolist() == [float(value) for value in theirs["mean_fg_dice"]]
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        expected = torch.load(Path(trainer.output_folder) / name, weights_only=False)["network_weights"]
        measured = weights(run, "Oslo", name)
        assert all(torch.equal(measured[layer], value) for layer, value in expected.items())


def test_own_trainer_by_import_path_decides_its_epochs(train: Train, tmp_path: Path) -> None:
    settings = ("trainer=nnunet", "trainer.class=tests.support.own_trainer.Gentle")
    from_class = tuple(f"trainer.{name}=null" for name in ("epochs", "iterations", "val_iterations"))
    result = train(tmp_path / "run", *settings, *from_class, "strategy=ffe", OSLO_AND_LUND)
    assert result.returncode == 0, result.stdout + result.stderr
    assert losses(tmp_path / "run")["round"].max() == 3
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["rounds"], facts["iterations"]) == (3, 2)
    final = torch.load(result_folder(tmp_path / "run", "Oslo") / "checkpoint_final.pth", weights_only=False)
    assert final["trainer_name"] == "Gentle"
    assert "exp_avg" in final["optimizer_state"]["state"][0]


def test_pretrained_weights_of_a_finished_run_are_where_training_starts(
    finished: Callable[[str], Path], train: Train, tmp_path: Path
) -> None:
    before = finished("ffe")
    # A learning rate of nothing: what was loaded is what is saved.
    frozen = ("trainer.initial_lr=1e-12", "trainer.weight_decay=0", "trainer.epochs=1")
    plans = f"init.plans={before}"
    result = train(tmp_path / "run", *frozen, "strategy=ffe", f"init.weights={before}", plans, OSLO_AND_LUND)
    assert result.returncode == 0, result.stdout + result.stderr
    assert torch.allclose(weights(tmp_path / "run", "Lund")[FIRST], weights(before, "Lund")[FIRST], atol=1e-8)

    # One node brings weights, the other none: all shared layers start from them.
    one = f"init.weights={{Oslo: {result_folder(before, 'Oslo') / 'checkpoint_final.pth'}}}"
    options = (*frozen, "strategy=asym", one, plans, OSLO_AND_LUND)
    result = train(tmp_path / "one", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert torch.allclose(weights(tmp_path / "one", "Lund")[FIRST], weights(before, "Oslo")[FIRST], atol=1e-8)


def test_pretrained_weights_that_do_not_fit(finished: Callable[[str], Path], train: Train, tmp_path: Path) -> None:
    options = (OSLO_AND_LUND, f"init.weights={finished('ffe')}", "model.overrides.UNet_base_num_features=6")
    result = train(tmp_path / "run", *options)
    assert result.returncode == 2
    # Whichever of the two says so first.
    assert re.search(r"error: node (Oslo|Lund): init\.weights=\S+Dataset20[13]_\1", result.stderr)
    for part in ("do not fit", "init.plans="):
        assert part in result.stderr


@pytest.mark.parametrize("dtype", ["float32", "int8", pytest.param("int4", marks=pytest.mark.nightly)])
def test_part_of_pretrained_weights_is_trained_with_noise_that_hides_cases(
    finished: Callable[[str], Path], train: Train, tmp_path: Path, dtype: str
) -> None:
    before, run, cache = finished("ffe"), tmp_path / "run", tmp_path / "cache"
    part = (f"init.weights={before}", f"init.plans={before}", "trainer.train_layers=[norm, seg_layers]")
    noise = ("privacy=case", "privacy.case.cases=4", "privacy.case.epsilon=20", "trainer.weight_decay=0")
    options = (*part, *noise, "strategy=ffe", OSLO_AND_LUND, f"paths.cache={cache}", f"exchange.dtype={dtype}")
    result = train(run, *options, "privacy.max_epsilon=21")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"node Oslo: noise hides each case: .* epsilon 20\.00 at delta .* expect ", result.stdout)
    spent = [json.loads(line) for line in (cache / "privacy" / "Oslo.jsonl").read_text().splitlines()]
    assert [entry["server_round"] for entry in spent] == [1, 2]
    assert 10 < spent[0]["epsilon"] < spent[1]["epsilon"] == pytest.approx(20, rel=1e-4)
    (old, oslo), (_, lund) = ((weights(before, node), weights(run, node)) for node in ("Oslo", "Lund"))
    first_names = [name for name in old if "all_modules" not in name and not name.startswith("decoder.encoder.")]
    for layer in first_names:
        is_trained = {"norm", "seg_layers"} & set(layer.split("."))
        assert torch.equal(old[layer], oslo[layer]) == (not is_trained), layer
        if is_trained:
            assert torch.equal(oslo[layer], lund[layer]), layer


@pytest.fixture(scope="module")
def plain(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two nodes, each in one process, in float32."""
    run = tmp_path_factory.mktemp("plain") / "run"
    result = train(run, "strategy=asym", OSLO_AND_LUND)
    assert result.returncode == 0, result.stdout + result.stderr
    return run


@pytest.mark.parametrize(
    "options",
    [
        ("compute.num_devices=2", "trainer.epochs=3"),
        ("compute.precision=bf16-mixed",),
        ("compute.precision=16-mixed",),
        ("compute.augmentation_workers=2",),
    ],
    ids=["two processes", "bfloat16", "float16", "augmentation in the background"],
)
def test_ways_to_compute(plain: Path, train: Train, tmp_path: Path, options: tuple[str]) -> None:
    result = train(tmp_path / "run", "strategy=asym", OSLO_AND_LUND, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = pd.read_csv(tmp_path / "run" / "rounds.csv"), pd.read_csv(plain / "rounds.csv")
    assert ours[["train_loss", "val_loss"]].notna().all(axis=None)
    # However a node computes, its state is exchanged once, and its checkpoint is nnU-Net's.
    first = ours["round"] == 1
    assert ours[first].bytes_up.tolist() == theirs[theirs["round"] == 1].bytes_up.tolist()
    assert list(weights(tmp_path / "run", "Oslo")) == list(weights(plain, "Oslo"))
    assert not torch.equal(weights(tmp_path / "run", "Oslo")[FIRST], weights(plain, "Oslo")[FIRST])


def test_different_memory_gives_different_plans_where_the_strategy_allows_it(train: Train, tmp_path: Path) -> None:
    """Under asym networks differ; under ffe a batch may, a network may not."""
    planned = ("model.overrides.UNet_min_batch_size=2", "model.overrides.max_dataset_covered=1")
    common = (OSLO_AND_LUND, *planned, "trainer.epochs=1", "trainer.iterations=1")
    base, little = "gpu_memory.gb=0.005", "+gpu_memory.per_node={Oslo: 0.0005}"
    asym = train(tmp_path / "asym", "strategy=asym", *common, base, little)
    assert asym.returncode == 0, asym.stdout + asym.stderr
    plans = json.loads((tmp_path / "asym" / "plans.json").read_text())
    patches = {node: plans[node]["configurations"]["2d"]["patch_size"] for node in ("Oslo", "Lund")}
    assert patches["Oslo"] != patches["Lund"]

    refused = train(tmp_path / "refused", "strategy=ffe", *common, base, little)
    assert refused.returncode == 2
    for part in ("nodes Lund and Oslo plan different networks", "gpu_memory", "strategy=asym"):
        assert part in refused.stderr

    ffe = train(tmp_path / "ffe", "strategy=ffe", *common, base, "+gpu_memory.per_node={Oslo: 0.003}")
    assert ffe.returncode == 0, ffe.stdout + ffe.stderr
    plans = json.loads((tmp_path / "ffe" / "plans.json").read_text())
    batches = {node: plans[node]["configurations"]["2d"]["batch_size"] for node in ("Oslo", "Lund")}
    assert batches["Oslo"] < batches["Lund"]
