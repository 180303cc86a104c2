"""Which nodes train in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fednnunet.exchange.messages import Fold

MIN_SAMPLED = 2
"""Nodes per round, however small the fraction: one alone is no federation."""


@dataclass(frozen=True)
class NodeSampler:
    """Draws the nodes of a round (client fraction C of McMahan et al. 2017, algorithm 1).

    Attributes:
        fraction: Fraction of the nodes that train in a round, above 0 and at most 1.
        seed: Random seed of the run.

    Raises:
        ValueError: ``fraction`` out of its range.
    """

    fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction_train={self.fraction}: must be above 0 and at most 1")

    def sample(self, names: Mapping[int, str], fold: Fold, server_round: int) -> list[int]:
        """Nodes of a round, in the order of ``names``; at least two, where there are two.

        Depends on seed, fold, round and the nodes' names only, not on the order in which they joined.

        Args:
            names: Node id to the node's name.
            fold: Fold that is trained.
            server_round: Round, counted from 1.
        """
        count = max(MIN_SAMPLED, round(self.fraction * len(names)))
        if count >= len(names):
            return list(names)
        by_name = sorted(names, key=names.__getitem__)
        rng = np.random.default_rng(list(f"{self.seed}/{fold}/{server_round}".encode()))
        drawn = {by_name[index] for index in rng.choice(len(by_name), count, replace=False)}
        return [node for node in names if node in drawn]
