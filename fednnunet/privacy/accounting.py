"""Differential privacy: what Gaussian noise is worth, in epsilon and delta (add or remove one unit).

Renyi differential privacy (RDP) of the Poisson-subsampled Gaussian mechanism (Mironov, Talwar, Zhang 2019, section
3.3, integer orders), and the exact curve of the Gaussian mechanism without sampling (Balle, Wang 2018, theorem 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, log_ndtr, logsumexp

ORDERS = (*range(2, 65), *range(68, 257, 4), *range(272, 1025, 16))
"""Orders of the Renyi divergence; the best one counts."""
LARGEST_NOISE = 1e6
"""Noise multiplier at which a budget that is still exceeded counts as impossible."""


def epsilon_of(noise: float, rate: float, releases: int, delta: float) -> float:
    """Epsilon of ``releases`` noisy sums.

    Args:
        noise: noise multiplier: standard deviation of the noise on the sum, in units of the clipping norm.
        rate: probability with which a unit is in a sum (Poisson sampling); 1 for always.
        releases: number of sums.
        delta: in (0, 1).

    Returns:
        Infinity without noise.

    Raises:
        ValueError: a rate or delta outside its range, or a negative number.
    """
    if not (0 < rate <= 1 and 0 < delta < 1 and noise >= 0 and releases >= 0):
        raise ValueError(f"noise={noise}, rate={rate}, releases={releases}, delta={delta} cannot be accounted for")
    if releases == 0:
        return 0.0
    if noise == 0:
        return math.inf
    if rate == 1:
        return gaussian_epsilon(math.sqrt(releases) / noise, delta)
    return rdp_epsilon([releases * divergence for divergence in subsampled_gaussian_rdp(noise, rate)], delta)


def gaussian_epsilon(sensitivity: float, delta: float) -> float:
    """Smallest epsilon of the Gaussian mechanism.

    Args:
        sensitivity: norm of what one unit changes over the noise's standard deviation. Of *T* releases of one unit it
            is sqrt(T) times that of a single one.
        delta: in (0, 1).
    """

    def excess(epsilon: float) -> float:
        first = log_ndtr(sensitivity / 2 - epsilon / sensitivity)
        second = epsilon + log_ndtr(-sensitivity / 2 - epsilon / sensitivity)
        return math.exp(first) - math.exp(min(second, 0.0)) - delta

    if excess(0.0) <= 0:
        return 0.0
    upper = sensitivity**2 / 2 + sensitivity * math.sqrt(2 * math.log(1 / delta)) + 1  # of its RDP, and a bit
    return float(brentq(excess, 0.0, upper, xtol=1e-9))


def subsampled_gaussian_rdp(noise: float, rate: float) -> list[float]:
    """Renyi divergence of one release at each of :data:`ORDERS`, for a rate below 1."""
    result = []
    for order in ORDERS:
        terms = np.arange(order + 1)
        binomials = gammaln(order + 1) - gammaln(terms + 1) - gammaln(order - terms + 1)
        logs = binomials + terms * math.log(rate) + (order - terms) * math.log1p(-rate)
        result.append(float(logsumexp(logs + (terms**2 - terms) / (2 * noise**2))) / (order - 1))
    return result


def rdp_epsilon(divergences: Sequence[float], delta: float) -> float:
    """Epsilon from Renyi divergences at :data:`ORDERS` (Canonne, Kamath, Steinke 2020, proposition 12)."""
    candidates = (
        divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order, divergence in zip(ORDERS, divergences, strict=True)
    )
    return max(min(candidates), 0.0)


def noise_for(epsilon: float, rate: float, releases: int, delta: float) -> float:
    """Smallest noise multiplier within a budget; arguments as in :func:`epsilon_of`.

    Raises:
        ValueError: no noise is enough.
    """

    def excess(log_noise: float) -> float:
        return epsilon_of(math.exp(log_noise), rate, releases, delta) - epsilon

    low, high = math.log(1e-2), math.log(LARGEST_NOISE)
    if not (epsilon > 0 and excess(high) <= 0):
        raise ValueError(f"epsilon={epsilon} cannot be had with {releases} releases at delta={delta}")
    if excess(low) <= 0:
        return math.exp(low)
    return math.exp(_bisect(excess, low, high))


def _bisect(excess: Callable[[float], float], low: float, high: float) -> float:
    """The upper end of a small interval in which a falling function passes 0: the budget is kept."""
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def noise_to_signal(noise: float, parameters: int, units: float) -> float:
    """rho: norm of the noise over that of the clipped sum, where all units point the same way.

    Args:
        noise: noise multiplier.
        parameters: number of trained values.
        units: expected number of units in a sum.
    """
    return noise * math.sqrt(parameters) / units
