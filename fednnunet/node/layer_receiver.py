"""Layers that a node receives: whole, or as steps from those that it received before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fednnunet.errors import MissingReferenceError, ProtocolError
from fednnunet.exchange.messages import EvaluateRequest, TrainRequest
from fednnunet.exchange.quantisation import decode_step, digest, is_quantised


class LayerReceiver:
    """Decodes what the server sends, and remembers it: the next steps start from there."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was received: the next layers have to come whole."""
        self._received: Mapping[str, np.ndarray] | None = None
        self._decoded: dict[str, np.ndarray] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of what is remembered."""
        return sum(array.nbytes for array in self._decoded.values())

    def decode(
        self, body: TrainRequest | EvaluateRequest, arrays: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """The layers beside a request; those of a request that was decoded last are not decoded again.

        Raises:
            MissingReferenceError: a step starts from another state than the one that this node was sent last, or it was
                sent none since it started.
            ProtocolError: a layer is no such step; names it.
        """
        if not is_quantised(body.dtype):
            if body.references:
                raise ProtocolError(f"the server sent steps where layers travel as {body.dtype}")
            self.reset()
            return arrays
        if arrays is self._received:
            return self._decoded
        if absent := body.references.keys() - arrays.keys():
            raise ProtocolError(f"the server announced a step of layer {min(absent)}, and sent none")
        before = self._decoded
        unknown = [
            layer
            for layer, start in body.references.items()
            if layer not in before or before[layer].dtype != np.float32 or digest(before[layer]) != start
        ]
        if unknown:
            raise MissingReferenceError(
                f"{len(unknown)} of {len(body.references)} layers start from what this node does not have; they have "
                "to be sent whole"
            )
        self.reset()
        decoded: dict[str, np.ndarray] = {}
        for layer, array in arrays.items():
            if layer in body.references:
                # One layer at a time takes the place of what it starts from.
                start = before.pop(layer)
                decoded[layer] = decode_step(array, start, body.dtype, f"the server sent layer {layer}")
            else:
                decoded[layer] = array.copy()  # the request's memory is gone after its reply
        self._received, self._decoded = arrays, decoded
        return decoded
