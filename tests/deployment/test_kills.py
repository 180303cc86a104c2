"""``kill -9`` of every process in several stages: the run goes on by itself, to the same result."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.deployment.conftest import OPTIONS
from tests.support.deployed_federation import Federation, check_result, reached, train_locally

pytestmark = pytest.mark.xdist_group("deployed")
STAGES = ("fingerprint", "plan", "preprocess", "train", "round 2", "evaluate", "external")
SOME_STAGES = ("preprocess", "round 2", "evaluate")


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(SOME_STAGES, id="before, in and after training"),
        pytest.param(STAGES, id="every stage", marks=pytest.mark.nightly),
    ],
)
def test_killed_processes_are_restarted_and_the_run_continues(
    federation: Federation, undisturbed: Path, tmp_path: Path, stages: tuple[str, ...]
) -> None:
    """A worker, a connection and the SuperLink, one after another, in each of these stages."""
    run = tmp_path / "run"
    before = {name: len(federation.output(name)) for name in federation.processes}
    federation.start_train(run, *OPTIONS)
    for stage in stages:
        federation.wait_for(partial(reached, federation, run, stage), f"stage {stage}")
        one, other = ("Riga", "Riga") if stage == "external" else ("Porto", "Oslo")
        for of, part in ((one, "worker"), (other, "connection"), ("server", "superlink")):
            federation.kill(of, part)
    federation.finish_train()
    check_result(run, undisturbed)
    for name, part in (("Porto", "worker"), ("Oslo", "connection"), ("server", "SuperLink")):
        assert f"the {part} ended (killed by SIGKILL); it is restarted" in federation.output(name)[before[name] :]


@pytest.mark.nightly
def test_steps_of_layers_outlive_the_processes_that_know_what_they_start_from(
    federation: Federation, raw: Path, tmp_path: Path
) -> None:
    options = ("strategy=ffe", "trainer.epochs=6", "exchange.dtype=int8")
    run, undisturbed = tmp_path / "run", tmp_path / "local"
    federation.start_train(run, *options)
    federation.wait_for(partial(reached, federation, run, "round 2"), "round 2")
    for of, part in (("Porto", "worker"), ("Oslo", "connection"), ("server", "superlink")):
        federation.kill(of, part)
    federation.finish_train()
    train_locally(raw, undisturbed, *options)
    check_result(run, undisturbed)
    down, alone = (
        pd.read_csv(folder / "rounds.csv").pivot(index="round", columns="node", values="bytes_down")
        for folder in (run, undisturbed)
    )
    assert (alone.loc[2:] < 0.5 * alone.loc[1]).all(axis=None), "they travel as steps"
    assert (down["Oslo"] == alone["Oslo"]).all(), "its worker lives"
    assert (down["Porto"] - alone["Porto"]).loc[2:].max() > 0.9 * alone["Porto"][1], "a new worker needs all once"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "stages"),
    [
        pytest.param(("strategy=ffe", "strategy.fine_tune_epochs=5"), ("fine_tune",), id="fine-tuned"),
        pytest.param(("strategy=ditto_asym", "exchange.dtype=int8"), ("round 1", "round 2"), id="ditto"),
    ],
)
def test_models_of_the_nodes_own_outlive_their_processes(
    federation: Federation, raw: Path, tmp_path: Path, options: tuple[str, ...], stages: tuple[str, ...]
) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "local"
    federation.start_train(run, *options, "trainer.epochs=4")
    for stage in stages:
        federation.wait_for(partial(reached, federation, run, stage), f"stage {stage}")
        federation.kill("Porto", "worker")
        federation.kill("Oslo", "connection")
    federation.finish_train()
    train_locally(raw, undisturbed, *options, "trainer.epochs=4")
    check_result(run, undisturbed)
    of_run = Path("runs") / (run / "run_id").read_text()
    for name in ("Oslo", "Porto"):
        here, there = federation.work_folder(name) / of_run / "personal", undisturbed / "nodes" / name / "personal"
        ours, theirs = final_layers(here), final_layers(there)
        assert all(torch.equal(ours[layer], values) for layer, values in theirs.items()), name


def test_a_round_of_secure_sums_outlives_its_processes(
    federation: Federation, undisturbed: Path, tmp_path: Path
) -> None:
    """Keys are certified by the authority; both nodes end with the average, near that of the plain run."""
    run = tmp_path / "run"
    rules = ("privacy.secure_sums.min_group=2", "privacy.secure_sums.colluding=0")
    federation.start_train(run, *OPTIONS, "privacy=secure", "privacy.least_steps=3", "privacy.scores=cases", *rules)
    federation.wait_for(partial(reached, federation, run, "round 2"), "round 2")
    for of, part in (("Porto", "worker"), ("Oslo", "connection"), ("server", "superlink")):
        federation.kill(of, part)
    federation.finish_train()
    of_run = Path("runs") / (run / "run_id").read_text()
    here, there = (final_layers(federation.work_folder(name) / of_run) for name in ("Oslo", "Porto"))
    plain = final_layers(undisturbed / "nodes" / "Oslo")
    assert here.keys() == there.keys() == plain.keys()
    for name, layer in here.items():
        assert torch.equal(layer, there[name]), name
        assert torch.allclose(layer, plain[name], atol=1e-3), name


def final_layers(node: Path) -> dict[str, torch.Tensor]:
    """Those of a node's final checkpoint."""
    (checkpoint,) = node.glob("nnUNet_results/*/*/fold_0/checkpoint_final.pth")
    layers: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=False)["network_weights"]
    return layers
