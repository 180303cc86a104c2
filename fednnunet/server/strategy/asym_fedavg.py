"""AsymFedAvg: average the layers that match (paper, eq. 2-4 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from fednnunet.server.strategy.averaging import StreamingAverage
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.layer_matching import AverageOver, Matching, Shapes, match_layers
from fednnunet.server.strategy.reply_validation import Update


class AsymFedAvg(Strategy):
    """Asymmetric federated averaging; on equal networks it is FedAvg (McMahan et al. 2017).

    Layers that match are averaged (paper, eq. 3), every other layer stays its node's own (eq. 4); only matching layers
    travel. For the nodes *k* that have the layers of group *g*, with weight *n_k*::

        w_g = sum_k(n_k * w_kg) / sum_k(n_k)

    Args:
        weighting: *n_k*: ``uniform``, 1 for all nodes (paper, eq. 3), or ``num_cases``, the training cases (FedAvg).
        matching: Which layers match, see :func:`~fednnunet.server.strategy.layer_matching.match_layers`.
        average_over: Which nodes a layer is averaged over, see there.
        proximal_mu: Weight of FedProx's proximal term, mu / 2 times the squared distance of the exchanged layers from
            what the round started with (Li et al. 2020, eq. 2); 0 for none.
        options: See :class:`~fednnunet.server.strategy.base.Strategy`.
    """

    def __init__(
        self,
        weighting: Literal["uniform", "num_cases"] = "uniform",
        matching: Matching = "name",
        average_over: AverageOver = "all",
        proximal_mu: float = 0.0,
        **options: Any,
    ) -> None:
        if weighting not in ("uniform", "num_cases"):
            raise ValueError(f"weighting={weighting}: must be uniform or num_cases")
        super().__init__(**options)
        self.weighting = weighting
        self.matching = matching
        self.average_over = average_over
        self.proximal_mu = proximal_mu
        self._average = StreamingAverage()

    def match_layers(self, layers: Mapping[int, Shapes]) -> Mapping[int, Mapping[str, str]]:
        """Layers of the same name and shape, or of the same place in the network."""
        return match_layers(layers, self.matching, self.average_over)

    def weight(self, update: Update) -> float:
        """*n_k*."""
        return float(update.num_cases) if self.weighting == "num_cases" else 1.0

    def aggregate(
        self, server_round: int, arrays: Mapping[str, np.ndarray], updates: Iterable[Update]
    ) -> Mapping[str, np.ndarray]:
        """Means by group; added up update by update: where replies come in their turn, one is held at a time."""
        self._average.reset()
        for update in updates:
            self._average.add(update.arrays, self.weight(update))
            del update  # of the size of a model: not kept while the next one is received
        return self._average.result()
