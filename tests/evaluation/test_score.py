"""Outputs of a network that are not finite are an error, and never background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednnunet.datasets.raw import Case
from fednnunet.errors import ConfigError
from fednnunet.evaluation.ensemble import FoldModels, segment_with_each
from fednnunet.evaluation.predict import NotFiniteError, Predictor
from fednnunet.evaluation.score import HeldOutCase, score_cases

SHAPE = (2, 4, 4)
LABELS = {"background": 0, "tumour": 1}
CASES = [HeldOutCase("Oslo", number, f"case_{number}", Case(f"case_{number}", (), Path())) for number in range(3)]


class Reader:
    """Every case is the same one."""

    def read_seg(self, file: str) -> tuple[np.ndarray, dict[str, Any]]:
        return np.ones((1, *SHAPE), dtype=np.uint8), {"spacing": (3.0, 1.0, 1.0)}


class Window:
    """A sliding window: logits that hold ``value``."""

    def __init__(self, value: float) -> None:
        self.value = value

    def logits(self, networks: list[Any], image: torch.Tensor, on_tile: Any) -> torch.Tensor:
        logits = torch.zeros(2, *SHAPE)
        logits[1, 0, 0, 0] = self.value
        return logits


def predictor(value: float) -> Predictor:
    predictor = object.__new__(Predictor)
    predictor.network = torch.nn.Identity()
    predictor._window = Window(value)  # type: ignore[assignment]
    return predictor


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_no_prediction(value: float) -> None:
    data = np.zeros((1, *SHAPE), dtype=np.float32)
    assert torch.isfinite(predictor(1.0).logits(data)).all()
    with pytest.raises(NotFiniteError):
        predictor(value).logits(data)


def test_an_output_that_is_not_finite_is_an_error_that_counts_the_cases() -> None:
    def segment(case: HeldOutCase) -> Iterator[tuple[None, np.ndarray]]:
        if case.number:
            raise NotFiniteError
        yield None, np.ones(SHAPE, dtype=np.uint8)

    reader: Any = Reader()
    with pytest.raises(ConfigError, match=r"^the output of its own model is NaN or infinite in 2 of 3 cases, so none"):
        score_cases(CASES, segment, reader, LABELS, "mm", 1.0, None, None)


def test_it_names_the_node_whose_model_was_received() -> None:
    class Broken(Predictor):
        def __init__(self) -> None:
            self.network = torch.nn.Identity()  # type: ignore[assignment]

        def load_files(self, images: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
            return np.zeros((1, *SHAPE), dtype=np.float32), {}

        def logits(self, data: np.ndarray) -> torch.Tensor:
            raise NotFiniteError

        labels: Any = None

    porto = FoldModels("Porto", Broken(), [dict])
    reader: Any = Reader()
    with pytest.raises(ConfigError, match=r"^the output of the model of Porto is NaN or infinite in 3 of 3 cases"):
        score_cases(CASES, lambda case: segment_with_each([porto], [], False), reader, LABELS, "mm", 1.0, None, None)
