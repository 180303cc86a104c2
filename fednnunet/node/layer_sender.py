"""Layers that a node sends to the server, in shared memory that is reused."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import SharedArrays, Spec
from fednnunet.exchange.messages import ExchangeDtype, TrainReply, TrainRequest
from fednnunet.exchange.quantisation import is_quantised
from fednnunet.exchange.rounding import ErrorFeedback
from fednnunet.node.secure_rounds import SecureRounds
from fednnunet.node.step_sender import StepSender
from fednnunet.privacy.figures import without_figures
from fednnunet.training.network_state import buffer_names, read_state, state_arrays, state_spec


class LayerSender:
    """Sends layers as they are, or those of a finished round, rounded.

    A round is rounded once: the rounding error is added to the next round, and a repeated request gets the same bytes.
    """

    def __init__(self) -> None:
        self._plain: SharedArrays | None = None
        self._rounded: SharedArrays | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was sent, and its rounding errors: another network follows."""
        self._feedback = ErrorFeedback("float32")
        self._steps = StepSender()
        self._sent: list[str] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of what was sent last and of rounding errors."""
        sent = [array.layout.size for array in (self._plain, self._rounded) if array is not None]
        return sum(sent) + sum(array.nbytes for array in self._feedback.residuals.values()) + self._steps.num_bytes

    def close(self) -> None:
        """Free the shared memory."""
        self._plain = self._rounded = None

    def finish_round(
        self, network: nn.Module, layers: Sequence[str], dtype: ExchangeDtype, start: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Prepare to send a trained round, which began with the layers ``start``.

        Returns:
            To be stored with the network: rounding errors of the rounds before it by layer, or the layers as they will
            be sent and what is left over after them.
        """
        if is_quantised(dtype):
            return self._steps.finish_round(network, layers, dtype, start)
        if self._feedback.dtype != dtype:
            self._feedback = ErrorFeedback(dtype, buffer_names(network))
        self._sent = None
        if self._feedback.rounds:
            for name, (shape, number) in state_spec(network, layers).items():
                self._feedback.expect(name, shape, number)
        return self._feedback.residuals

    def restore_round(
        self, network: nn.Module, layers: Sequence[str], dtype: ExchangeDtype, residuals: Mapping[str, np.ndarray]
    ) -> None:
        """Resume from the round of a checkpoint, with what :meth:`finish_round` stored in it."""
        if is_quantised(dtype):
            self._steps.restore_round(network, dtype, residuals)
            return
        self._feedback = ErrorFeedback(dtype, buffer_names(network))
        self._feedback.residuals = dict(residuals)
        self._sent = None
        if residuals:
            # Layers that are not finite were refused at that time, too, and left no rounding error.
            with contextlib.suppress(ProtocolError):
                self.rounded(network, layers, dtype)

    def rounded(self, network: nn.Module, layers: Sequence[str], dtype: ExchangeDtype) -> SharedArrays:
        """The ``layers`` of the finished round as ``dtype``.

        Raises:
            ProtocolError: values are not finite, or the round was first asked for with other layers or another dtype.
        """
        if is_quantised(dtype):
            wire = self._steps.layers_of_round(layers, dtype)
            self._rounded = _reuse(self._rounded, {name: (array.shape, array.dtype) for name, array in wire.items()})
            for name, view in self._rounded.views().items():
                np.copyto(view, wire[name])
            return self._rounded
        if self._sent is None:
            spec = state_spec(network, layers)
            rounded = {name: (shape, self._feedback.dtype_of(name, number)) for name, (shape, number) in spec.items()}
            self._rounded = _reuse(self._rounded, rounded)
            self._feedback.encode(state_arrays(network, layers), self._rounded.views(), "the node")
            self._sent = list(layers)
        if self._sent != list(layers) or self._feedback.dtype != dtype:
            raise ProtocolError("the round was sent before with other layers, or as another dtype")
        assert self._rounded is not None
        return self._rounded

    def masked(
        self, network: nn.Module, request: TrainRequest, reply: TrainReply, rounds: SecureRounds
    ) -> tuple[TrainReply, SharedArrays | None]:
        """The layers of a finished round as masked integers, if any, and the reply that goes with them.

        Raises:
            ProtocolError: see :meth:`~fednnunet.node.secure_rounds.SecureRounds.mask`.
        """
        if not request.layers:
            return without_figures(reply), None
        wire = rounds.spec(state_spec(network, request.layers), request)
        self._rounded = _reuse(self._rounded, wire)
        reply = rounds.mask(request, state_arrays(network, request.layers), reply, self._rounded.views())
        return reply, self._rounded

    def plain(self, network: nn.Module, layers: Sequence[str]) -> SharedArrays:
        """The ``layers`` as they are."""
        self._plain = _reuse(self._plain, state_spec(network, layers))
        read_state(network, layers, self._plain.views())
        return self._plain


def _reuse(present: SharedArrays | None, spec: Spec) -> SharedArrays:
    return present if present is not None and present.is_free_for(spec) else SharedArrays.allocate(spec)
