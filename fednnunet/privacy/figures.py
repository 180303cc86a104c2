"""Figures of a round as numbers that can be summed: their mean says nothing of one node."""

from __future__ import annotations

import math

import numpy as np

from fednnunet.exchange.messages import TrainReply

FIGURES = "figures"
"""Name of the array that a round's figures travel in."""
FIGURE_NAMES = ("train_loss", "val_loss", "pseudo_dice")


def to_array(reply: TrainReply) -> np.ndarray:
    """Figures of a round, 0 where there is none, and then 1 where there is one."""
    values = [getattr(reply, name) for name in FIGURE_NAMES]
    return np.array([value or 0.0 for value in values] + [float(value is not None) for value in values])


def without_figures(reply: TrainReply) -> TrainReply:
    """The reply, without the figures of its node."""
    return reply.model_copy(update=dict.fromkeys(FIGURE_NAMES))


def mean_figures(means: np.ndarray) -> dict[str, float | None]:
    """Mean of each figure over the nodes that have it, from the mean of :func:`to_array`."""
    values, present = np.split(means.astype(np.float64), 2)
    means_there = [float(v / p) if p > 1e-3 else None for v, p in zip(values, present, strict=True)]
    return {
        name: mean if mean is None or math.isfinite(mean) else None
        for name, mean in zip(FIGURE_NAMES, means_there, strict=True)
    }
