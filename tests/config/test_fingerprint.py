"""What nodes are asked for before training: what goes together, and what a node's own file changes of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fednnunet.config.fingerprint import FingerprintConfig


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"geometry": "sums", "intensity": "weighted_mean"}, "geometry=sums needs intensity=histogram"),
        ({"intensities": "needed", "intensity": "weighted_mean"}, "intensities=needed needs intensity=histogram"),
        ({"precision": "quantised", "intensity": "weighted_mean"}, "precision=quantised needs intensity=histogram"),
        ({"epsilon": 8}, "epsilon needs geometry=sums"),
        ({"epsilon": 1.5, "geometry": "sums"}, "epsilon=1.5 takes so much noise"),
        ({"epsilon": -1, "geometry": "sums"}, "greater than 0"),
    ],
)
def test_what_cannot_be_had_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        FingerprintConfig(**values)


def test_noise_of_two_is_taken() -> None:
    assert FingerprintConfig(geometry="sums", epsilon=2).epsilon == 2
