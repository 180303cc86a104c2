"""Segment a case with several models: nnU-Net's ensembles of folds, and of nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from fednnunet.evaluation.predict import NotFiniteError, Predictor
from fednnunet.exchange.messages import ENSEMBLE
from fednnunet.training.network_state import load_state


@dataclass(frozen=True)
class FoldModels:
    """A node's models of several folds, which have one network and differ in their weights.

    Attributes:
        node: node that trained the models.
        predictor: predictor with the network, whose weights are overwritten.
        weights: functions that read the layers of one fold's model each.
    """

    node: str
    predictor: Predictor
    weights: Sequence[Callable[[], Mapping[str, np.ndarray]]]

    def probabilities(self, images: list[str]) -> np.ndarray:
        """Mean softmax (sigmoid of regions) of the folds' models, (classes, Z, Y, X) in the images' own grid.

        Raises:
            NotFiniteError: a model's output is NaN or infinite; names the node that trained it.
        """
        data, properties = self.predictor.load_files(images)

        def of_fold(load: Callable[[], Mapping[str, np.ndarray]]) -> np.ndarray:
            load_state(self.predictor.network, load())
            return self.predictor.segment_with_probabilities(self.predictor.logits(data), properties)[1]

        try:
            return reduce(np.add, map(of_fold, self.weights)) / len(self.weights)
        except NotFiniteError as error:
            raise NotFiniteError(self.node) from error


def segment_with_each(
    models: Sequence[FoldModels], images: list[str], together: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """The segmentation (Z, Y, X) of each node's models; ``together`` adds that of all nodes, as ``ensemble``.

    Softmax outputs are averaged in the images' own grid, as ``nnUNetv2_ensemble`` does, since nodes may have planned
    other spacings; every node weighs the same. One case is in memory at a time, with four softmax outputs at most.
    """
    labels = models[0].predictor.labels
    total: Any = 0
    for model in models:
        mean = model.probabilities(images)
        yield model.node, labels.convert_probabilities_to_segmentation(mean)
        total = total + mean
    if together and len(models) > 1:
        yield ENSEMBLE, labels.convert_probabilities_to_segmentation(total / len(models))
