"""Nodes that end with a model of their own: Ditto's beside the shared one, or the averages fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from fednnunet.run_files import PERSONAL_RESULTS
from fednnunet.training.checkpoint import intact_rounds
from tests.integration.conftest import CENTRES, Train, final_weights, go_on
from tests.support.own_trainer import GPU_IS_FULL

pytestmark = pytest.mark.xdist_group("finished")
TUNED = ("strategy=asym", "strategy.fine_tune_epochs=3", "strategy.fine_tune_learning_rate=0.005")
ONE_NODE_AT_A_TIME = ("federation.workers=1", "federation.cache_gib=0")
"""Nodes leave memory after each round, and go on from their files."""


def own_folder(run: Path, node: str) -> Path:
    """Where the checkpoints of a node's own model lie."""
    (folder,) = (run / "nodes" / node / PERSONAL_RESULTS).glob("*/*/fold_0")
    return folder


def own_weights(run: Path, node: str) -> dict[str, torch.Tensor]:
    return torch.load(own_folder(run, node) / "checkpoint_final.pth", weights_only=False)["network_weights"]


def are_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())


def scores(run: Path, strategy: str, node: str) -> pd.DataFrame:
    rows = pd.read_csv(run / "cases.csv")
    return rows[(rows.strategy == strategy) & (rows.node == node)].drop(columns="strategy").reset_index(drop=True)


def test_ditto_leaves_the_shared_network_as_it_is_and_without_a_tie_trains_as_if_alone(
    train: Train, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    run, shared, alone = tmp_path / "run", finished("asym"), finished("local")
    result = train(run, "strategy=ditto_asym", "strategy.ditto_lambda=0", *ONE_NODE_AT_A_TIME)
    assert result.returncode == 0, result.stderr
    for node in CENTRES:
        assert are_equal(final_weights(run, node), final_weights(shared, node)), node
        assert are_equal(own_weights(run, node), final_weights(alone, node)), node
        pd.testing.assert_frame_equal(scores(run, "ditto_asym shared", node), scores(shared, "asym", node))
        pd.testing.assert_frame_equal(scores(run, "ditto_asym", node), scores(alone, "local", node))
    seconds = ["strategy", "seconds_train", "seconds_exchange"]
    rounds, expected = (pd.read_csv(folder / "rounds.csv").drop(columns=seconds) for folder in (run, shared))
    pd.testing.assert_frame_equal(rounds.drop(columns="bytes_down"), expected.drop(columns="bytes_down"))
    external = pd.read_csv(run / "cases.csv").query("node == 'Riga'")
    assert set(external.strategy) == {"ditto_asym shared"}, "the node's own model does not leave it"
    assert not list(run.glob("nodes/*/**/checkpoint_round_*"))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("ditto", "base", "options"),
    [
        pytest.param("ditto_asym", "asym", ("exchange.dtype=int4",), id="int4"),
        pytest.param("ditto_asym", "asym", ("exchange.dtype=bfloat16", "strategy.local_epochs=2"), id="bfloat16"),
        pytest.param("ditto", "ffe", ("privacy=secure", "privacy.least_steps=1"), id="secure sums"),
        pytest.param("ditto", "ffe", ("strategy.aggregation.fraction_train=0.6",), id="two of three nodes per round"),
    ],
)
def test_the_shared_network_is_the_same_however_layers_travel(
    train: Train, tmp_path: Path, ditto: str, base: str, options: tuple[str, ...]
) -> None:
    runs = {name: tmp_path / name for name in (ditto, base)}
    for name, memory in ((ditto, ONE_NODE_AT_A_TIME), (base, ())):
        result = train(runs[name], f"strategy={name}", "trainer.epochs=4", *options, *memory)
        assert result.returncode == 0, result.stderr
    for node in CENTRES:
        assert are_equal(final_weights(runs[ditto], node), final_weights(runs[base], node)), node
        assert not are_equal(own_weights(runs[ditto], node), final_weights(runs[ditto], node)), node


@pytest.mark.nightly
@pytest.mark.parametrize("options", [("strategy=ditto",), ("strategy=ffe", "strategy.fine_tune_epochs=1")])
def test_noise_is_on_what_leaves_and_scores_of_what_has_none_stay(
    train: Train, tmp_path: Path, options: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    noise = ("privacy=case", "privacy.case.accept_useless=true", "privacy.least_steps=1", "privacy.scores=cases")
    result = train(run, *options, *noise)
    assert result.returncode == 0, result.stderr
    cases = pd.read_csv(run / "cases.csv")
    shared, own = ("ditto shared", "ditto") if options == ("strategy=ditto",) else ("ffe", "ffe fine-tuned")
    assert cases[(cases.strategy == shared) & cases.node.isin(CENTRES)].dsc.notna().all()
    kept = cases[cases.strategy == own]
    assert set(kept.node) == set(CENTRES)
    assert (kept.n_cases == 0).all()
    for node in CENTRES:
        assert pd.read_csv(run / "nodes" / node / "cases_fold_0_personal.csv").dsc.notna().all()
        assert own_weights(run, node)


@pytest.fixture(scope="module")
def tuned(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends with fine-tuning, with a worker per node."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    result = train(run, *TUNED, "federation.workers=4", report=True)
    assert result.returncode == 0, result.stderr
    return run


def test_fine_tuning_starts_from_the_averages_which_are_kept_beside_it(
    tuned: Path, finished: Callable[[str], Path]
) -> None:
    for node in CENTRES:
        assert are_equal(final_weights(tuned, node), final_weights(finished("asym"), node)), node
        pd.testing.assert_frame_equal(scores(tuned, "asym", node), scores(finished("asym"), "asym", node))
        assert not are_equal(own_weights(tuned, node), final_weights(tuned, node))
        ours = scores(tuned, "asym fine-tuned", node)
        assert ours[["model", "case", "label"]].equals(scores(tuned, "asym", node)[["model", "case", "label"]])
        logging = torch.load(own_folder(tuned, node) / "checkpoint_final.pth", weights_only=False)["logging"]
        # nnU-Net's polynomial decay over these epochs: 0.005 (1 - epoch / 3) ^ 0.9
        assert logging["lrs"] == pytest.approx([0.005, 0.005 * (2 / 3) ** 0.9, 0.005 * (1 / 3) ** 0.9])
    summary = pd.read_csv(tuned / "summary.csv")
    assert set(summary.strategy) == {"asym", "asym fine-tuned"}
    assert "asym fine-tuned" in (tuned / "report.html").read_text()


def test_fine_tuning_that_was_interrupted_goes_on_to_the_same_model(train: Train, tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (*TUNED, "trainer.class=tests.support.own_trainer.LargeWhileTunedAtPorto", "federation.workers=1")
    run.mkdir()
    (run / GPU_IS_FULL).touch()
    result = train(run, *options)
    assert result.returncode == 2
    assert "node Porto: out of GPU memory" in result.stderr
    assert not (run / "cases.csv").exists()
    assert intact_rounds(own_folder(run, "Porto")) == [1]
    (run / GPU_IS_FULL).unlink()
    go_on(run)
    assert (run / "cases.csv").read_text() == (tuned / "cases.csv").read_text()
    for node in CENTRES:
        assert are_equal(own_weights(run, node), own_weights(tuned, node)), node
    assert "fine-tuning goes on after epoch 1" in (run / "nodes" / "Porto" / "node.log").read_text()
