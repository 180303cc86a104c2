"""Epsilon: against the exact Gaussian, figures that were published, and bounds from both sides."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from fednnunet.privacy.accounting import (
    ORDERS,
    Releases,
    composed_epsilon,
    epsilon_of,
    gaussian_epsilon,
    noise_for,
    noise_to_signal,
    pld_epsilon,
    rdp_epsilon,
    subsampled_gaussian_rdp,
)

ROOT = Path(__file__).parents[2]


def test_dp_sgd_as_published() -> None:
    # Abadi et al. 2016, section 3.1 and figure 2: q=0.01, sigma=4, 10,000 steps, delta=1e-5: 1.26 by the moments
    # accountant, which today's conversion from RDP undercuts a little.
    epsilon = epsilon_of(4.0, 0.01, 10_000, 1e-5)
    assert 0.9 < epsilon < 1.26


def test_dp_sgd_of_images_as_published() -> None:
    # De et al. 2022, a WRN-16-4 on CIFAR-10, as in their code: 725 steps of 4096 of 50,000 images with noise multiplier
    # 10 keep within epsilon 1, and are not far from it.
    assert 0.85 < epsilon_of(10.0, 4096 / 50_000, 725, 1e-5) < 1


def test_the_divergence_of_an_order_is_its_binomial_sum() -> None:
    # Mironov, Talwar, Zhang 2019, section 3.3, by whole numbers
    noise, rate, order = 1.3, 0.2, 7
    terms = (
        math.comb(order, k) * rate**k * (1 - rate) ** (order - k) * math.exp((k * k - k) / (2 * noise**2))
        for k in range(order + 1)
    )
    found = subsampled_gaussian_rdp(noise, rate)[ORDERS.index(order)]
    assert found == pytest.approx(math.log(sum(terms)) / (order - 1), rel=1e-12)


def test_kinds_of_releases_add_up() -> None:
    parts = [Releases(2.0, 0.1, 50), Releases(2.0, 0.1, 150), Releases(3.0, 1.0, 0)]
    assert composed_epsilon(parts, 1e-5) == epsilon_of(2.0, 0.1, 200, 1e-5)
    exact = composed_epsilon([Releases(20.0, 1.0, 300), Releases(40.0, 1.0, 2800)], 1e-5)
    assert exact == pytest.approx(epsilon_of(20.0, 1.0, 1000, 1e-5))  # 300/400 + 2800/1600 = 1000/400
    mixed = composed_epsilon([*parts, Releases(10.0, 1.0, 4)], 1e-5)
    assert epsilon_of(2.0, 0.1, 200, 1e-5) < mixed


@pytest.mark.parametrize(
    "kinds", [[Releases(1.0, 0.12, 100)], [Releases(5.0, 0.5, 200)], [Releases(1.0, 0.1, 50), Releases(2.0, 1.0, 5)]]
)
def test_privacy_loss_distributions_are_a_little_tighter(kinds: list[Releases]) -> None:
    pytest.importorskip("dp_accounting")
    tighter = pld_epsilon(kinds, 1e-5)
    assert tighter is not None
    assert tighter < composed_epsilon(kinds, 1e-5) < 1.4 * tighter


@pytest.mark.parametrize(("releases", "noise", "epsilon"), [(1, 1.0, 4.38), (1000, 20.0, 7.51), (100, 50.0, 0.73)])
def test_without_sampling_epsilon_is_exact(releases: int, noise: float, epsilon: float) -> None:
    # dp-accounting 0.6.0, PLDAccountant, delta=1e-5
    assert epsilon_of(noise, 1.0, releases, 1e-5) == pytest.approx(epsilon, abs=0.005)


def test_the_exact_curve_gives_its_delta() -> None:
    epsilon = gaussian_epsilon(0.7, 1e-6)
    phi = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
    assert phi(0.35 - epsilon / 0.7) - math.exp(epsilon) * phi(-0.35 - epsilon / 0.7) == pytest.approx(1e-6, rel=1e-4)
    assert gaussian_epsilon(1e-9, 1e-5) == 0.0
    assert gaussian_epsilon(1e5, 1e-5) == pytest.approx(5e9, rel=1e-3)  # half of its square, for much too little noise


@pytest.mark.parametrize("noise", [0.8, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("rate", [0.01, 0.12, 0.5])
def test_sampling_helps_and_rdp_is_above_the_exact_curve(noise: float, rate: float) -> None:
    sampled = epsilon_of(noise, rate, 100, 1e-5)
    assert 0 < sampled < epsilon_of(noise, 1.0, 100, 1e-5) * 1.1
    almost_always = rdp_epsilon(100 * subsampled_gaussian_rdp(noise, 1 - 1e-9), 1e-5)
    assert almost_always >= epsilon_of(noise, 1.0, 100, 1e-5)


@pytest.mark.parametrize("epsilon", [0.5, 8.0, 50.0])
@pytest.mark.parametrize(("rate", "releases"), [(0.1, 200), (1.0, 100), (0.5, 5000)])
def test_the_noise_keeps_the_budget_and_wastes_nothing(epsilon: float, rate: float, releases: int) -> None:
    noise = noise_for(epsilon, rate, releases, 1e-5)
    assert epsilon_of(noise, rate, releases, 1e-5) <= epsilon
    assert epsilon_of(0.99 * noise, rate, releases, 1e-5) > epsilon


def test_no_release_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon_of(1.0, 0.5, 0, 1e-5) == 0.0
    assert epsilon_of(0.0, 0.5, 1, 1e-5) == math.inf
    for impossible in ({"noise": -1.0}, {"rate": 0.0}, {"delta": 1.0}):
        with pytest.raises(ValueError, match="cannot be accounted for"):
            epsilon_of(**{"noise": 1.0, "rate": 0.5, "releases": 1, "delta": 1e-5, **impossible})


def test_noise_to_signal_as_in_de_et_al() -> None:
    assert noise_to_signal(3.0, 8_900_000, 4096) == pytest.approx(2.2, abs=0.05)


def test_the_table_of_the_documents() -> None:
    rows = 0
    for line in (ROOT / "docs" / "explanation" / "noise.md").read_text().splitlines():
        if not line.startswith("| one of "):
            continue
        hidden, *figures = [cell.strip() for cell in line.strip("|").split("|")]
        epsilon, noise, *ratios = map(float, figures)
        of, *numbers = map(float, re.findall(r"[\d.]+", hidden))
        if "nodes" in hidden:
            units, rate, releases, delta = of, 1.0, int(numbers[0]), 1e-5
        else:
            units, rate, releases, delta = numbers[0], numbers[0] / of, int(numbers[1]), 0.1 / of
        found = noise_for(epsilon, rate, releases, delta)
        assert found == pytest.approx(noise, abs=0.006)
        for values, ratio in zip((1e4, 1e5, 1e6, 33.5e6), ratios, strict=True):
            assert noise_to_signal(found, int(values), units) == pytest.approx(ratio, rel=0.02, abs=0.06)
        rows += 1
    assert rows == 8
