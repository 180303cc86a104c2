"""What a strategy remembers over rounds, in the run's folder, so that an interrupted run continues with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fednnunet.exchange.arrays import BFLOAT16
from fednnunet.exchange.messages import Fold
from fednnunet.files import archive_damage, write_arrays

KEPT_CHECKPOINTS = 3
"""Rounds; as many as nodes keep, so that a run can go on from each of theirs."""

State: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
"""Named arrays, by what they are: the momenta of each layer, the rounding residuals of each group."""


def checkpoint_file(folder: Path, fold: Fold, server_round: int) -> Path:
    """Where the state after a round is, or would be."""
    return folder / f"strategy_fold_{fold}_round_{server_round}.npz"


def write_checkpoint(folder: Path, fold: Fold, server_round: int, state: State) -> None:
    """Write the state after a round; those of the two before stay, others are of no use any more."""
    flat = {f"{kind}/{name}": array for kind, arrays in state.items() for name, array in arrays.items()}
    write_arrays(checkpoint_file(folder, fold, server_round), flat)
    kept = {checkpoint_file(folder, fold, server_round - before) for before in range(KEPT_CHECKPOINTS)}
    for path in folder.glob(f"strategy_fold_{fold}_round_*.npz"):
        if path not in kept:
            path.unlink()


def read_checkpoint(folder: Path, fold: Fold, server_round: int) -> dict[str, dict[str, np.ndarray]]:
    """What :func:`write_checkpoint` wrote, without kinds that had no array."""
    state: dict[str, dict[str, np.ndarray]] = {}
    with np.load(checkpoint_file(folder, fold, server_round), allow_pickle=False) as arrays:
        for key, array in arrays.items():
            kind, _, name = key.partition("/")
            # numpy's files hold bfloat16 as two bytes of no type.
            state.setdefault(kind, {})[name] = array.view(BFLOAT16) if array.dtype.kind == "V" else array
    return state


def has_checkpoint(folder: Path, fold: Fold, server_round: int) -> bool:
    """Whether the state after a round is there, and undamaged."""
    path = checkpoint_file(folder, fold, server_round)
    return path.is_file() and archive_damage(path) is None
