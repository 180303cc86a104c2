"""Scripted nodes whose layers are summed securely: with real keys, certificates, masks and shares."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding

from fednnunet.config.privacy import SecureSumsConfig
from fednnunet.errors import ProtocolError
from fednnunet.exchange.channel import Request
from fednnunet.exchange.messages import (
    FingerprintReply,
    FingerprintRequest,
    PreprocessRequest,
    TrainReply,
    TrainRequest,
    UnmaskRequest,
)
from fednnunet.launch.local_identities import write_identity
from fednnunet.node.masked_counts import mask_counts
from fednnunet.node.secure_rounds import SecureRounds
from fednnunet.node.settings import NodeIdentity
from fednnunet.privacy.identity import make_authority
from tests.support.scripted_federation import Answer, ScriptedNode, State, WorkerFails

RUN = "0123456789abcdef0123456789abcdef"


class Authority:
    """A federation's authority, and the files of the nodes that it certifies.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.certificate, self.key = make_authority("authority", timedelta(days=1))
        self.file = folder / "ca.crt"
        self.file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def identity(self, name: str) -> NodeIdentity:
        """Files of the node of this name; the same when asked again."""
        files = NodeIdentity(self.folder / f"{name}.key", self.folder / f"{name}.crt", self.file)
        if not files.key.is_file():
            write_identity(files, name, self.certificate, self.key)
        return files


class SecureNode(ScriptedNode):
    """A scripted node that masks its layers.

    Args:
        name: Name of the node.
        authority: Certifies its key.
        sums: Rules of the sums.
        options: See :class:`ScriptedNode`.

    Attributes:
        folder: Its folder.
        masked: Fold and round to the masked layers that it sent.
    """

    def __init__(self, name: str, authority: Authority, sums: SecureSumsConfig | None = None, **options: Any) -> None:
        super().__init__(name, **options)
        self.folder = folder = authority.folder / f"node {name}"
        folder.mkdir(exist_ok=True)
        self._new_worker = lambda: SecureRounds(name, folder, sums or SecureSumsConfig(), authority.identity(name))
        self.secure = self._new_worker()
        self.masked: dict[tuple[Any, int], State] = {}

    def restart(self) -> None:
        """What its worker had in memory is gone."""
        self.secure = self._new_worker()

    def answer(self, body: Any, request: Request) -> Answer:
        """The reply of a good node, which refuses what it must not do."""
        try:
            return self._answer(body, request)
        except ProtocolError as error:
            raise WorkerFails(error) from None

    def _answer(self, body: Any, request: Request) -> Answer:
        if isinstance(body, UnmaskRequest):
            return Answer(self.secure.unmask(body).model_dump())
        if isinstance(body, PreprocessRequest):
            self.secure.join(body)
        if isinstance(body, TrainRequest) and body.server_round:
            return self._mask(body, request)
        answer = super().answer(body, request)
        if isinstance(body, FingerprintRequest) and body.secure_run is not None and not self.external:
            if body.below is not None:
                counts = FingerprintReply.model_validate(answer.body).counts or {}
                answer.body["counts"] = mask_counts(self.secure, body, counts, self.folder)
            answer.body["key"] = self.secure.signed_key(body.secure_run).model_dump()
        return answer

    def _mask(self, body: TrainRequest, request: Request) -> Answer:
        if (body.fold, body.server_round) not in self.sent:
            before = [number for fold, number in self.sent if fold == body.fold and number < body.server_round]
            self.secure.start_round(body, request.arrays, max(before, default=0))
        answer = super().answer(body, request)
        layers = {layer: self.sent[body.fold, body.server_round][layer] for layer in body.layers}
        wire = self.secure.spec({layer: (array.shape, array.dtype) for layer, array in layers.items()}, body)
        out = {layer: np.empty(shape, dtype) for layer, (shape, dtype) in wire.items()}
        reply = self.secure.mask(body, layers, TrainReply.model_validate(answer.body), out)
        self.masked[body.fold, body.server_round] = {layer: array.copy() for layer, array in out.items()}
        answer.body, answer.arrays = reply.model_dump(), out
        return answer


def secure_nodes(names: Sequence[str], folder: Path, **options: Any) -> list[SecureNode]:
    """A node of each name, certified by one authority."""
    authority = Authority(folder)
    return [SecureNode(name, authority, **options) for name in names]
