"""A node counts its cases (:mod:`fednnunet.fingerprint.geometry`), with noise where ``fingerprint.epsilon`` is set.

The same question about the same images gets the same noise, and is paid for once in the node's ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import FingerprintRequest
from fednnunet.exchange.quantities import Counts, Questions
from fednnunet.files import write_atomically
from fednnunet.fingerprint.extract import case_sizes
from fednnunet.fingerprint.geometry import (
    DELTA,
    EXACT_QUESTIONS,
    NOISY_QUESTIONS,
    CaseSizes,
    count_below,
    noise_of,
    share_of,
)
from fednnunet.node.noise import secret_in
from fednnunet.node.settings import NOISE_KEY
from fednnunet.privacy.accounting import Releases
from fednnunet.privacy.ledger import Ledger
from fednnunet.privacy.masks import derive_seed
from fednnunet.privacy.noise import add_noise

if TYPE_CHECKING:
    from fednnunet.node.describe import NodeDataset

COUNTED = "counted.json"
"""File in the node's folder: the points below which cases were counted in the run."""
COUNTED_KEY = "counted.key"
"""File in the node's folder: a secret whose digest stands for the run's counts in the ledger.

Not that of its rounds, which a fold that begins anew takes out of the account, and counts must stay in it.
"""


def counts_of(dataset: NodeDataset, request: FingerprintRequest) -> Counts:
    """How many cases lie below each point; with secure sums, to be masked, and with the node's share of the noise.

    Raises:
        ProtocolError: points that the grid does not have, or more of them than a search needs.
        ConfigError: the noise costs more than the node allows over all runs.
    """
    below, epsilon = request.below or {}, dataset.config.fingerprint.epsilon
    sizes = CaseSizes.of(dataset.cached("case_sizes", lambda: case_sizes(dataset.images, dataset.workers)))
    try:
        counts = count_below(sizes, below)
    except ValueError as error:
        raise ProtocolError(f"the server asks for what cannot be counted: {error}") from None
    most = EXACT_QUESTIONS if epsilon is None else NOISY_QUESTIONS
    in_run = dataset.settings.folder / COUNTED
    counted = _with(_points(in_run), below)
    if _number(counted) > most:
        raise ProtocolError(
            f"the server asks for counts below more than {most} points in one run, which no search needs; they are "
            "not told"
        )
    write_atomically(in_run, json.dumps(counted, sort_keys=True))
    if epsilon is None:
        return counts
    sums = dataset.config.privacy.secure_sums
    if sums is None:
        return _with_noise(dataset, counts, below, epsilon, 1.0, [])
    members = sorted(key.node for key in request.keys)
    return _with_noise(dataset, counts, below, epsilon, share_of(len(members), sums.colluding), members)


def _with_noise(
    dataset: NodeDataset, counts: Counts, below: Questions, epsilon: float, share: float, members: Sequence[str]
) -> Counts:
    """Counts with noise, or this ``share`` of it in the sum over ``members``, after their cost is in the ledger."""
    ledger = dataset.settings.ledger
    folder = ledger.parent / f"{ledger.stem}_counts" / dataset.cache_folder_of_images.name
    folder.mkdir(parents=True, exist_ok=True)
    noise, secret = noise_of(epsilon), secret_in(folder / NOISE_KEY)
    # The same noise at another scale, or in the sum over other nodes, would tell the count, together with this one.
    release = hashlib.sha256(json.dumps([epsilon, share, *members]).encode()).hexdigest()
    _pay(dataset, folder / f"{release[:16]}.json", below, noise)
    noisy: Counts = {}
    for quantity, found in counts.items():
        values = np.array(found, float)
        for place, number in enumerate(below[quantity]):
            seed = derive_seed(secret, "counts", quantity.value, number, release)
            add_noise(values[place : place + 1], share * noise, seed)
        noisy[quantity] = np.rint(values).astype(int).tolist()
    return noisy


def _pay(dataset: NodeDataset, paid: Path, below: Questions, noise: float) -> None:
    """Write what new points cost into the ledger.

    Raises:
        ConfigError: a whole search would cost more than the node allows.
    """
    before = _points(paid)
    after = _with(before, below)
    new = _number(after) - _number(before)
    if not new:
        return
    settings, cases = dataset.settings, list(dataset.case_digests().values())
    ledger, limit = Ledger(settings.ledger), settings.config.privacy.max_epsilon
    left = max(new, NOISY_QUESTIONS - _number(before))
    total = ledger.epsilon("case", cases, DELTA, [Releases(noise, 1, left)])
    if limit is not None and total > limit:
        raise ConfigError(
            f"counting cases with fingerprint.epsilon would bring epsilon to {total:.2f}; at most {limit:g} is allowed "
            "here (privacy.max_epsilon)"
        )
    run = derive_seed(secret_in(settings.folder / COUNTED_KEY), "run").hex()[:16]
    ledger.spend("case", cases, DELTA, Releases(noise, 1, new), run, "all", 0)
    write_atomically(paid, json.dumps(after, sort_keys=True))


def _points(path: Path) -> dict[str, list[int]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _with(points: dict[str, list[int]], more: Questions) -> dict[str, list[int]]:
    """Points by quantity, with more of them."""
    added = {quantity.value: numbers for quantity, numbers in more.items()}
    return {name: sorted({*points.get(name, []), *added.get(name, [])}) for name in {*points, *added}}


def _number(points: dict[str, list[int]]) -> int:
    return sum(map(len, points.values()))
