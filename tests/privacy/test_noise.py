"""Noise: normal, secret, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from fednnunet.privacy.noise import add_noise, uniform


def test_noise_is_normal() -> None:
    values = np.full((250, 801), 5.0)
    add_noise(values, 2.0, b"n" * 32)
    assert kstest((values - 5.0).ravel() / 2.0, "norm").pvalue > 1e-3
    flat = values.ravel() - 5.0
    for lag in (1, 2, 4, 16384):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 6 / flat.size**0.5


def test_the_same_seed_gives_the_same_noise_and_another_another() -> None:
    one, again, other = (np.zeros(1000, np.float32) for _ in range(3))
    for values, seed in ((one, b"a" * 32), (again, b"a" * 32), (other, b"b" * 32)):
        add_noise(values, 1.0, seed)
    assert (one == again).all()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


def test_uniform_numbers_are_uniform_over_blocks() -> None:
    numbers = uniform(70_000, b"u" * 32)
    assert kstest(numbers, "uniform").pvalue > 1e-3
    assert len(np.unique(numbers)) == numbers.size
    assert (uniform(100, b"u" * 32) == numbers[:100]).all()


def test_noise_is_not_lost_in_a_copy() -> None:
    turned = np.zeros((3, 4), np.float32).T
    with pytest.raises(ValueError, match="contiguous"):
        add_noise(turned, 1.0, b"a" * 32)
