"""What a strategy remembers over rounds, in the run's folder, so that an interrupted run goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fednnunet.exchange.arrays import BFLOAT16
from fednnunet.exchange.messages import Fold
from fednnunet.files import write_arrays

KEPT_STATES = 2


def write_state(folder: Path, fold: Fold, server_round: int, state: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a round; the last two rounds are kept."""
    write_arrays(state_file(folder, fold, server_round), state)
    state_file(folder, fold, server_round - KEPT_STATES).unlink(missing_ok=True)


def read_state(folder: Path, fold: Fold, server_round: int) -> dict[str, np.ndarray]:
    """What :func:`write_state` wrote."""
    with np.load(state_file(folder, fold, server_round), allow_pickle=False) as state:
        # numpy's files hold bfloat16 as two bytes of no type.
        return {name: array.view(BFLOAT16) if array.dtype.kind == "V" else array for name, array in state.items()}


def state_file(folder: Path, fold: Fold, server_round: int) -> Path:
    """Where the state after a round lies, or would."""
    return folder / f"strategy_fold_{fold}_round_{server_round}.npz"
