"""Layers that a node sends as steps from what its round began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import check_finite
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.quantisation import StepFeedback
from fednnunet.training.network_state import buffer_names, state_arrays

SENT, LEFT = "sent/", "left/"
"""Begin the names of arrays in a checkpoint: layers as they are sent, and what is left over after them."""


class StepSender:
    """Encodes a finished round once; a repeated request gets the same bytes, also from a worker that was restarted."""

    def __init__(self) -> None:
        self._feedback: StepFeedback | None = None
        self._sent: dict[str, np.ndarray] = {}
        self._problem = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of what was sent last, and of what is left over."""
        left = {} if self._feedback is None else self._feedback.residuals
        return sum(array.nbytes for array in (*self._sent.values(), *left.values()))

    def finish_round(
        self, network: nn.Module, layers: Sequence[str], dtype: ExchangeDtype, start: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Encode a trained round, which began with the layers ``start``; others are sent whole.

        Returns:
            What :meth:`restore_round` needs.
        """
        feedback = self._feedback_in(network, dtype)
        self._sent, self._problem = {}, ""
        sent: dict[str, np.ndarray] = {}
        arrays = state_arrays(network, layers)
        try:
            check_finite(arrays, "the node")
            for name, array in arrays.items():
                reference = start.get(name)
                if reference is not None and feedback.is_step(name, array, reference):
                    sent[name] = feedback.encode(name, array, reference, "the node")
                else:
                    sent[name] = array.copy()
        except ProtocolError as error:  # told when they are asked for
            self._problem = str(error)
        else:
            self._sent = sent
        kept = {f"{LEFT}{name}": array for name, array in feedback.residuals.items()}
        return kept | {f"{SENT}{name}": array for name, array in self._sent.items()}

    def restore_round(self, network: nn.Module, dtype: ExchangeDtype, stored: Mapping[str, np.ndarray]) -> None:
        """Resume from what :meth:`finish_round` returned."""
        self._feedback, self._problem = None, "the node sent layers with values that are not finite"
        feedback = self._feedback_in(network, dtype)
        feedback.residuals = _named(stored, LEFT)
        self._sent = _named(stored, SENT)

    def layers_of_round(self, layers: Sequence[str], dtype: ExchangeDtype) -> dict[str, np.ndarray]:
        """The layers of the finished round as they travel.

        Raises:
            ProtocolError: values are not finite, or the round was first asked for with other layers or another dtype.
        """
        if not self._sent:
            raise ProtocolError(self._problem)
        if list(self._sent) != list(layers) or self._feedback is None or self._feedback.dtype != dtype:
            raise ProtocolError("the round was sent before with other layers, or as another dtype")
        return self._sent

    def _feedback_in(self, network: nn.Module, dtype: ExchangeDtype) -> StepFeedback:
        if self._feedback is None or self._feedback.dtype != dtype:
            self._feedback = StepFeedback(dtype, buffer_names(network))
        return self._feedback


def _named(stored: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(kind): array for name, array in stored.items() if name.startswith(kind)}
