"""NoExchange: every node trains alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.layer_matching import Shapes
from fednnunet.server.strategy.reply_validation import Update
from fednnunet.server.strategy.row_average import Annotated


class NoExchange(Strategy):
    """The same rounds, and no layer travels (baselines ``local`` and ``centralized``)."""

    def __init__(self) -> None:
        super().__init__()

    def prepare(
        self,
        layers: Mapping[int, Shapes],
        names: Mapping[int, str],
        dtype: ExchangeDtype = "float32",
        buffers: Mapping[int, Collection[str]] | None = None,
        annotated: Annotated | None = None,
    ) -> None:
        """No layer travels, so none is rounded."""
        super().prepare(layers, names)

    def log_shared_fraction(self) -> None:
        """Nothing to log: it is 0 % by design."""

    def match_layers(self, layers: Mapping[int, Shapes]) -> Mapping[int, Mapping[str, str]]:
        """No layer matches another."""
        return {node: {} for node in layers}

    def aggregate(
        self, server_round: int, arrays: Mapping[str, np.ndarray], updates: Iterable[Update]
    ) -> Mapping[str, np.ndarray]:
        """Nothing to combine."""
        return {}
