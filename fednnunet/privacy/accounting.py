"""Differential privacy: what Gaussian noise is worth, in epsilon and delta (add or remove one unit).

Renyi differential privacy (RDP) of the Poisson-subsampled Gaussian mechanism (Mironov, Talwar, Zhang 2019, section
3.3, integer orders), and the exact curve of the Gaussian mechanism without sampling (Balle, Wang 2018, theorem 8).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

ORDERS = (*range(2, 65), *range(68, 257, 4), *range(272, 1025, 16))
"""Orders of the Renyi divergence; the best one counts."""
LARGEST_NOISE = 1e6
"""Noise multiplier at which a budget that is still exceeded counts as impossible."""


class Releases(NamedTuple):
    """Noisy sums of one kind.

    Attributes:
        noise: noise multiplier: standard deviation of the noise on the sum, in units of the clipping norm.
        rate: probability with which a unit is in a sum (Poisson sampling); 1 for always.
        number: number of sums.
    """

    noise: float
    rate: float
    number: int


def epsilon_of(noise: float, rate: float, releases: int, delta: float) -> float:
    """Epsilon of ``releases`` noisy sums.

    Args:
        noise: noise multiplier, as in :class:`Releases`.
        rate: rate of sampling, as there.
        releases: number of sums.
        delta: in (0, 1).

    Returns:
        Infinity without noise.

    Raises:
        ValueError: a rate or delta outside its range, or a negative number.
    """
    return composed_epsilon([Releases(noise, rate, releases)], delta)


def composed_epsilon(kinds: Iterable[Releases], delta: float) -> float:
    """Epsilon of all noisy sums together, of whatever kinds; otherwise as :func:`epsilon_of`."""
    made = []
    for kind in kinds:
        if not (0 < kind.rate <= 1 and 0 < delta < 1 and kind.noise >= 0 and kind.number >= 0):
            raise ValueError(f"{kind} cannot be accounted for at delta={delta}")
        made += [kind] if kind.number else []
    if not made:
        return 0.0
    if not all(kind.noise for kind in made):
        return math.inf
    if all(kind.rate == 1 for kind in made):
        return gaussian_epsilon(math.sqrt(sum(kind.number / kind.noise**2 for kind in made)), delta)
    divergences = [kind.number * subsampled_gaussian_rdp(kind.noise, kind.rate) for kind in made]
    return rdp_epsilon(np.sum(divergences, axis=0), delta)


def gaussian_epsilon(sensitivity: float, delta: float) -> float:
    """Smallest epsilon of the Gaussian mechanism.

    Args:
        sensitivity: norm of what one unit changes over the noise's standard deviation. Of *T* releases of one unit it
            is sqrt(T) times that of a single one.
        delta: in (0, 1).
    """
    from scipy.special import log_ndtr  # here, as servers and readers of ledgers start without it: it takes a second

    def excess(epsilon: float) -> float:
        first = log_ndtr(sensitivity / 2 - epsilon / sensitivity)
        second = epsilon + log_ndtr(-sensitivity / 2 - epsilon / sensitivity)
        return math.exp(first) - math.exp(min(second, 0.0)) - delta

    if excess(0.0) <= 0:
        return 0.0
    upper = sensitivity**2 / 2 + sensitivity * math.sqrt(2 * math.log(1 / delta)) + 1  # of its RDP, and a bit
    return _bisect(excess, 0.0, upper, 1e-9)


def subsampled_gaussian_rdp(noise: float, rate: float) -> np.ndarray:
    """Renyi divergence of one release at each of :data:`ORDERS`."""
    orders, binomials = np.array(ORDERS), _log_binomials()
    if rate == 1:
        return orders / (2 * noise**2)
    terms = np.arange(binomials.shape[1])
    logs = binomials + terms * math.log(rate) + (orders[:, None] - terms) * math.log1p(-rate)
    logs += (terms**2 - terms) / (2 * noise**2)
    largest = logs.max(axis=1)
    return (largest + np.log(np.exp(logs - largest[:, None]).sum(axis=1))) / (orders - 1)


@functools.cache
def _log_binomials() -> np.ndarray:
    """Logarithm of *order over term*, (orders, terms); minus infinity beyond the order."""
    orders, terms = np.array(ORDERS)[:, None], np.arange(max(ORDERS) + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(terms[1:]))])
    others = np.where(terms <= orders, log_factorials[np.abs(orders - terms)], np.inf)
    return log_factorials[orders] - log_factorials[terms] - others


def rdp_epsilon(divergences: Sequence[float] | np.ndarray, delta: float) -> float:
    """Epsilon from Renyi divergences at :data:`ORDERS` (Canonne, Kamath, Steinke 2020, proposition 12)."""
    orders = np.array(ORDERS)
    candidates = divergences + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(float(candidates.min()), 0.0)


def pld_epsilon(kinds: Iterable[Releases], delta: float) -> float | None:
    """As :func:`composed_epsilon`, by privacy loss distributions (Doroshenko et al. 2022), which are a little tighter.

    Returns:
        None where ``dp-accounting`` is not installed (``pip install fednnunet[privacy]``).
    """
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        return None
    accountant = PLDAccountant()
    for kind in kinds:
        event = dp_accounting.PoissonSampledDpEvent(kind.rate, dp_accounting.GaussianDpEvent(kind.noise))
        accountant.compose(event, kind.number)
    return float(accountant.get_epsilon(delta))


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
    return math.exp(_bisect(excess, low, high, 1e-6))


def _bisect(excess: Callable[[float], float], low: float, high: float, width: float) -> float:
    """The upper end of an interval of relative ``width`` in which a falling function passes 0: the budget is kept."""
    while high - low > width * (1 + abs(high)):
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
