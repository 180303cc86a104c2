"""The attacks of ``experiments/privacy`` on scores, gradients and models whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import MetricRecord
from torchmetrics.functional.classification import binary_auroc, binary_sensitivity_at_specificity

from fednnunet.evaluation.statistics import bootstrap
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.reply_validation import Update
from tests.support.experiment_modules import load_module, read_command, without_traces

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/privacy"
load = partial(load_module, FOLDER)


@pytest.fixture(scope="module", autouse=True)
def _as_the_script_runs() -> Iterator[None]:
    """One thread; and no module of a common name, such as ``metrics``, is left to other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield from without_traces(FOLDER)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("training", "hospitals"), [("alone", 6), ("federated", 4), ("noise 0.5", 1), ("noise 2", 1)])
def test_every_training_is_one_of_the_products(tmp_path: Path, training: str, hospitals: int) -> None:
    config = read_command(load("trainings").command(tmp_path, training, [7]), tmp_path)
    assert config.seed == 7
    assert len(config.training_centres) == hospitals
    assert (config.privacy.case is not None) == training.startswith("noise")
    assert config.privacy.case is None or config.privacy.case.noise == float(training.split()[1])


def test_the_curious_server_averages_and_keeps_what_it_is_sent(tmp_path: Path) -> None:
    def updates() -> Iterator[Update]:
        for node, name in enumerate("AB"):
            arrays = {"layer": np.full((2, 3), node, dtype=np.float32)}
            yield Update(node, name, 1, MetricRecord(), arrays, norm=None, statistics_norm=None, reply=None)

    curious = load("curious_server").CuriousFedAvg(str(tmp_path)).aggregate(1, {}, updates())
    assert np.array_equal(curious["layer"], AsymFedAvg().aggregate(1, {}, updates())["layer"])
    with np.load(tmp_path / "B.npz") as kept:
        assert np.array_equal(kept["layer"], np.ones((2, 3)))


def scores(shift: float, seed: int, members: int = 15, others: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(-shift, 1, members), rng.normal(0, 1, others)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_auc_and_true_positives_are_those_of_torchmetrics(shift: float) -> None:
    metrics = load("metrics")
    members, others = scores(shift, seed=1)
    suspicion = torch.from_numpy(-np.concatenate([members, others])).sigmoid()
    truth = torch.tensor([1] * members.size + [0] * others.size)
    assert metrics.auc(members, others) == pytest.approx(float(binary_auroc(suspicion, truth)))
    found, _ = binary_sensitivity_at_specificity(suspicion, truth, min_specificity=0.95)
    assert metrics.true_positive_rate(members, others) == pytest.approx(float(found))


def test_equal_scores_are_guessing() -> None:
    metrics = load("metrics")
    assert metrics.auc(np.zeros(5), np.zeros(9)) == 0.5
    assert metrics.true_positive_rate(np.zeros(5), np.zeros(9)) == 0.0


def test_interval_of_one_hospital_is_that_of_scipys_bootstrap() -> None:
    metrics = load("metrics")
    hospital = scores(1.0, seed=1)

    def statistic(members: np.ndarray, others: np.ndarray, axis: int = -1) -> np.ndarray:
        return metrics.auc(members, others)

    ours, theirs = metrics.interval([[hospital]], metrics.auc), bootstrap(hospital, statistic)
    assert vars(ours) == pytest.approx(vars(theirs), abs=0.01)


def test_intervals_widen_with_the_difference_of_seeds() -> None:
    metrics = load("metrics")
    alike, unlike = ([[scores(1.0 + step * seed, seed=1)] for seed in (-1, 0, 1)] for step in (0.0, 1.0))
    narrow, wide = (metrics.interval(seeds, metrics.auc) for seeds in (alike, unlike))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_gradient_tells_of_its_image_and_noise_prevents_it() -> None:
    inversion = load("inversion")
    rng = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.LeakyReLU(), torch.nn.Linear(8, 4)
    )
    truth, rivals = torch.randn((1, 1, 6, 6), generator=rng), torch.randn((50, 1, 6, 6), generator=rng)
    prior, target = inversion.Prior(torch.randn((60, 1, 6, 6), generator=rng)), [torch.tensor([2])]

    def loss(logits: torch.Tensor, target: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, target[0])

    batch = inversion.Batch(truth, target)
    others = inversion.Batch(rivals, [torch.randint(4, (50,), generator=rng)])
    exact = inversion.gradient(network, loss, truth, target)
    found = {}
    for name, observed in {"exact": exact, "noisy": inversion.noisy(exact, 0.5, 10.0, rng)}.items():
        image = inversion.invert(network, loss, target, observed, prior, steps=60)[0]
        correlation, _, rank = inversion.rank_of_truth(image.numpy(), truth[0].numpy(), rivals.numpy())
        found[name] = correlation, rank, inversion.rank_of_gradient(network, loss, observed, batch, others)
    assert found["exact"][0] > 0.8
    assert found["exact"][1:] == (0, 0)
    assert found["noisy"][0] < 0.5
    assert found["noisy"][2] > 0


def test_noise_is_added_to_a_gradient_of_bounded_norm() -> None:
    inversion = load("inversion")
    big = [torch.full((3, 4), 10.0), torch.full((5,), -10.0)]
    clipped = inversion.noisy(big, clip=0.5, noise=0.0, generator=torch.Generator())
    assert float(torch.sqrt(sum((part**2).sum() for part in clipped))) == pytest.approx(0.5)
    assert all(torch.allclose(part / part.abs().max(), whole / 10.0) for part, whole in zip(clipped, big, strict=True))


def test_slices_are_cut_and_padded_around_their_centre() -> None:
    membership = load("membership")
    slices = torch.arange(1.0, 13.0).reshape(1, 3, 4)
    assert membership.fit(slices, (1, 6)).tolist() == [[[0.0, 5.0, 6.0, 7.0, 8.0, 0.0]]]


def test_tables_and_figure_show_what_was_attacked(tmp_path: Path) -> None:
    report = load("report")
    rng = np.random.default_rng(0)
    cases = pd.DataFrame(
        [
            (seed, model, hospital, case, case < 5, rng.normal(-gain * (case < 5)), 0.0, 0.7)
            for seed in (0, 1)
            for model, gain in {"a node alone": 5.0, "60 cases, noise 1": 0.0}.items()
            for hospital in "AB"
            for case in range(25)
        ],
        columns=["seed", "model", "hospital", "case", "member", "loss", "reference_loss", "dsc"],
    )
    patches = pd.DataFrame(
        [(0, "gradient of one patch", 0.9, 0.4, 0, 0), (0, "a round of 50 steps", 0.4, 0.4, 150, 40)],
        columns=["seed", "observed", "correlation", "others", "rank", "known_rank"],
    )
    text = report.write_report(tmp_path, cases, patches)
    assert (tmp_path / "attacks.md").read_text() == text
    alone, noise, patch, _ = (line for line in text.splitlines() if line.startswith(("| a ", "| 60", "| gradient")))
    assert alone.startswith("| a node alone | 1.00 [1.00, 1.00] | 1.00")
    assert alone.endswith("| 0.70 | none |")
    assert "none" not in noise
    assert patch == "| gradient of one patch | 1 | 0.90 | 0.40 | 0 | 0 |"
    assert (tmp_path / "attacks.png").stat().st_size > 10_000
