"""A server that averages as it should, and keeps what it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet.files import write_arrays
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.reply_validation import Update


class CuriousFedAvg(AsymFedAvg):
    """FedAvg whose server writes every node's layers of the last round to ``<folder>/<node>.npz``.

    It shows what a server sees of one node without secure sums; it changes nothing of the training.

    Args:
        folder: where the layers go.
        options: see :class:`~fednnunet.server.strategy.asym_fedavg.AsymFedAvg`.
    """

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder = Path(folder)

    def aggregate(
        self, server_round: int, arrays: Mapping[str, np.ndarray], updates: Iterable[Update]
    ) -> Mapping[str, np.ndarray]:
        return super().aggregate(server_round, arrays, self._kept(updates))

    def _kept(self, updates: Iterable[Update]) -> Iterator[Update]:
        for update in updates:
            write_arrays(self._folder / f"{update.name}.npz", update.arrays)
            yield update
