"""Layers on their way from a node's network to the server, in shared memory that is used again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import SharedArrays, Spec
from fednnunet.exchange.messages import ExchangeDtype
from fednnunet.exchange.rounding import ErrorFeedback
from fednnunet.training.network_state import read_state, state_arrays, state_spec


class Outgoing:
    """What a node sends: layers as they are, or those of a finished round, rounded.

    A round is rounded once: what that leaves over belongs to the next, and who asks again gets the same bytes.
    """

    def __init__(self) -> None:
        self._plain: SharedArrays | None = None
        self._rounded: SharedArrays | None = None
        self.begin_fold()

    def begin_fold(self) -> None:
        """Another network, of which nothing is left over."""
        self._feedback = ErrorFeedback("float32")
        self._sent: list[str] | None = None

    def finish_round(self, network: nn.Module, layers: Sequence[str], dtype: ExchangeDtype) -> dict[str, np.ndarray]:
        """A round is trained: what rounding has left over before it, to be stored with the network."""
        if self._feedback.dtype != dtype:
            self._feedback = ErrorFeedback(dtype)
        self._sent = None
        if self._feedback.rounds:
            for name, (shape, number) in state_spec(network, layers).items():
                self._feedback.expect(name, shape, number)
        return self._feedback.residuals

    def restore_round(
        self, network: nn.Module, layers: Sequence[str], dtype: ExchangeDtype, residuals: Mapping[str, np.ndarray]
    ) -> None:
        """Go on from a round of a checkpoint with what was stored then."""
        self._feedback = ErrorFeedback(dtype)
        self._feedback.residuals = dict(residuals)
        self._sent = None
        if residuals:
            # Layers that are not finite were refused then, too, and have left nothing over.
            with contextlib.suppress(ProtocolError):
                self.rounded(network, layers, dtype)

    def rounded(self, network: nn.Module, layers: Sequence[str], dtype: ExchangeDtype) -> SharedArrays:
        """``layers`` of the finished round as ``dtype``.

        Raises:
            ProtocolError: values that are not finite, or not what was asked for when the round was first sent.
        """
        if self._sent is None:
            spec = state_spec(network, layers)
            wire = {name: (shape, self._feedback.dtype_of(number)) for name, (shape, number) in spec.items()}
            self._rounded = _memory(self._rounded, wire)
            self._feedback.encode(state_arrays(network, layers), self._rounded.views(), "the node")
            self._sent = list(layers)
        if self._sent != list(layers) or self._feedback.dtype != dtype:
            raise ProtocolError("the round was sent before with other layers, or as another dtype")
        assert self._rounded is not None
        return self._rounded

    def plain(self, network: nn.Module, layers: Sequence[str]) -> SharedArrays:
        """``layers`` as they are."""
        self._plain = _memory(self._plain, state_spec(network, layers))
        read_state(network, layers, self._plain.views())
        return self._plain


def _memory(present: SharedArrays | None, spec: Spec) -> SharedArrays:
    if present is not None and present.spec == spec:
        return present
    if present is not None:
        present.close()
    return SharedArrays.allocate(spec)
