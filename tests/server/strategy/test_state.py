"""What a strategy remembers over rounds, and under which names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord

from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.checkpoint import State


class Remembering(AsymFedAvg):
    """Remembers arrays of the kinds it is given."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.arrays: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in kinds}

    def state(self) -> State:
        return self.arrays

    def load_state(self, state: State) -> None:
        self.arrays = {kind: dict(arrays) for kind, arrays in state.items()}


@pytest.mark.parametrize("kind", ["arrays", "residuals", "momenta/first"])
def test_kinds_that_would_be_read_as_others_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"Remembering.state: '{kind}' must not contain / nor be arrays or residuals"):
        Remembering("squares", kind).save(tmp_path, 0, 1, ArrayRecord())
    assert not list(tmp_path.iterdir())


def test_kinds_without_arrays_are_not_loaded(tmp_path: Path) -> None:
    strategy = Remembering("momenta", "squares")
    strategy.arrays["squares"]["encoder"] = np.ones(3)
    strategy.save(tmp_path, 0, 1, ArrayRecord())
    strategy.restore(tmp_path, 0, 1)
    assert strategy.arrays.keys() == {"squares"}
    assert np.array_equal(strategy.arrays["squares"]["encoder"], np.ones(3))
