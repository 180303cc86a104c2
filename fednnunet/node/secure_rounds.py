"""A node's part in secure sums: its key for the run, masked layers, and shares that open a round's sums, once.

What must outlive the worker is on disk before anything that depends on it leaves: the key for the run, what the masks
of the last round depend on, and which arrivals its sums were opened for.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from pydantic import BaseModel

from fednnunet.config.privacy import SecureSumsConfig
from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import SharedArrays, Spec
from fednnunet.exchange.messages import (
    Fold,
    PreprocessRequest,
    SignedKey,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)
from fednnunet.files import write_atomically
from fednnunet.node.settings import NodeIdentity
from fednnunet.privacy.figures import FIGURE_NAMES, FIGURES, to_array
from fednnunet.privacy.identity import pair_secrets, sign_key, verify_key
from fednnunet.privacy.ring import FixedPoint
from fednnunet.privacy.secure_sum import SumContext, SumMember, SumRules, digest_of


class MaskedClass(BaseModel):
    """What the masks of a class depended on."""

    members: list[str]
    digest: str


class MaskedRound(BaseModel):
    """The last round whose layers were sent.

    Attributes:
        fold: fold of the round.
        server_round: the round.
        classes: class by class.
        opened: class by class, the arrivals that its sum was opened for; None before.
    """

    fold: Fold
    server_round: int
    classes: list[MaskedClass]
    opened: list[list[str]] | None = None


class SecureRounds:
    """A node's part in the secure sums of a run.

    Args:
        name: name of the node.
        folder: folder of the node.
        config: rules of the sums; the node's own floors are in them.
        identity: what proves to other nodes who this one is.
    """

    def __init__(self, name: str, folder: Path, config: SecureSumsConfig, identity: NodeIdentity) -> None:
        self.name, self.config, self.identity = name, config, identity
        self.rules = SumRules(config.colluding, config.min_group)
        self._key_file, self._round_file = folder / "secure_sums.key", folder / "secure_round.json"
        self._member: SumMember | None = None
        self._run = ""

    # keys ------------------------------------------------------------------------------------------------

    def signed_key(self, run: str) -> SignedKey:
        """The node's key for a run, made when it is first asked for."""
        identity = load_ssh_private_key(self.identity.key.read_bytes(), None)
        certificate = self.identity.certificate.read_text(encoding="ascii")
        return sign_key(self._key(run), self.name, run, identity, certificate)  # type: ignore[arg-type]

    def join(self, request: PreprocessRequest) -> None:
        """Agree on secrets with the nodes whose keys are in ``request``.

        Raises:
            ProtocolError: a key is not of this federation or run; names its node.
        """
        run = request.secure_run
        assert run is not None
        authority = x509.load_pem_x509_certificate(self.identity.authority.read_bytes())
        own = self._key(run)
        keys = {signed.node: verify_key(signed, run, authority) for signed in request.keys if signed.node != self.name}
        if len(keys) + 1 != len(request.keys):
            raise ProtocolError("the server did not send one key of every node, this one's among them")
        self._member = SumMember(self.name, own.private_bytes_raw(), pair_secrets(own, keys, run), self.rules)
        self._run = run

    def _key(self, run: str) -> X25519PrivateKey:
        if self._key_file.is_file():
            stored = json.loads(self._key_file.read_text())
            if stored["run"] == run:
                return X25519PrivateKey.from_private_bytes(bytes.fromhex(stored["key"]))
        key = X25519PrivateKey.generate()
        self._round_file.unlink(missing_ok=True)  # of another run
        with os.fdopen(os.open(self._key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"run": run, "key": key.private_bytes_raw().hex()}, file)
        return key

    # rounds ----------------------------------------------------------------------------------------------

    def spec(self, shapes: Spec, request: TrainRequest) -> Spec:
        """Arrays that leave in a round: integers of the ring, and layers that no class holds as they are."""
        masked = {layer for layer_class in request.classes for layer in layer_class.layers}
        ring = np.dtype(np.int32)
        wire = {layer: (shape, ring if layer in masked else dtype) for layer, (shape, dtype) in shapes.items()}
        return {**wire, FIGURES: ((2 * len(FIGURE_NAMES),), ring)}

    def mask(
        self,
        request: TrainRequest,
        received: Mapping[str, np.ndarray],
        layers: Mapping[str, np.ndarray],
        reply: TrainReply,
        out: SharedArrays,
    ) -> TrainReply:
        """Write the masked ``layers`` of a round into ``out``.

        Args:
            request: the round's.
            received: arrays that came with it.
            layers: the node's layers after the round.
            reply: its figures.
            out: arrays of :meth:`spec`.

        Returns:
            ``reply`` without figures of this node, and with its shares.

        Raises:
            ProtocolError: classes that are not summed, or values that cannot be written as integers.
        """
        member = self._joined()
        views, shares, masked = out.views(), [], []
        in_class = [layer for layer_class in request.classes for layer in layer_class.layers]
        if len(set(in_class)) < len(in_class) or not set(in_class) <= set(request.layers):
            raise ProtocolError("the server asks for a layer in two classes, or in none of the round")
        for layer in set(request.layers) - set(in_class):
            if layers[layer].dtype.kind == "f":
                raise ProtocolError(f"the server asks for layer {layer} in clear, which is summed securely here")
            np.copyto(views[layer], layers[layer])
        for number, layer_class in enumerate(request.classes):
            digest = digest_of([received[layer] for layer in layer_class.layers if layer in received])
            context = self._context(request.fold, request.server_round, layer_class.members, digest)
            point = FixedPoint(len(layer_class.members), self.config.limit)
            for layer in layer_class.layers:
                point.encode(layers[layer], layer_class.weight, views[layer], f"layer {layer} of node {self.name}")
            arrays = [views[layer] for layer in layer_class.layers]
            if number == 0:
                point.encode(to_array(reply), 1.0, views[FIGURES], f"figures of node {self.name}")
                arrays.append(views[FIGURES])
            shares.append({peer: _text(bundle) for peer, bundle in member.mask(arrays, context).items()})
            masked.append(MaskedClass(members=layer_class.members, digest=digest))
        self._record(MaskedRound(fold=request.fold, server_round=request.server_round, classes=masked))
        return reply.model_copy(update={**dict.fromkeys(FIGURE_NAMES), "shares": shares})

    def unmask(self, request: UnmaskRequest) -> UnmaskReply:
        """Shares that open the sums of the last round, for one set of arrivals only.

        Raises:
            ProtocolError: another round, other arrivals than before, or too few.
        """
        member, last = self._joined(), self._last_round()
        if last is None or (last.fold, last.server_round) != (request.fold, request.server_round):
            raise ProtocolError(f"node {self.name} has sent no layers of round {request.server_round} to be opened")
        if not len(request.arrived) == len(request.shares) == len(last.classes):
            raise ProtocolError(f"the round has {len(last.classes)} classes, the request {len(request.arrived)}")
        arrived = [sorted(names) for names in request.arrived]
        if last.opened not in (None, arrived):
            raise ProtocolError(f"node {self.name} has opened round {last.server_round} for other nodes before")
        opened: list[dict[str, dict[str, str]]] = []
        for masked, names, bundles in zip(last.classes, arrived, request.shares, strict=True):
            if not names:
                opened.append({})
                continue
            context = self._context(last.fold, last.server_round, masked.members, masked.digest)
            given = {name: _bytes(bundle, name) for name, bundle in bundles.items()}
            shares = member.unmask(context, names, given)
            opened.append({name: {of: s.hex() for of, s in theirs.items()} for name, theirs in shares.items()})
        self._record(last.model_copy(update={"opened": arrived}))
        return UnmaskReply(shares=opened)

    def _joined(self) -> SumMember:
        if self._member is None:
            raise ProtocolError("secure sums were asked for before the nodes' keys came")
        return self._member

    def _context(self, fold: Fold, server_round: int, members: Sequence[str], digest: str) -> SumContext:
        return SumContext(self._run, str(fold), server_round, tuple(members), digest)

    def _last_round(self) -> MaskedRound | None:
        if not self._round_file.is_file():
            return None
        return MaskedRound.model_validate_json(self._round_file.read_bytes())

    def _record(self, masked: MaskedRound) -> None:
        """Write what the masks of a round depend on; a round that was opened stays so."""
        last = self._last_round()
        if last is not None and masked.opened is None and last.opened is not None:
            same = (last.fold, last.server_round) == (masked.fold, masked.server_round)
            if same and last.classes != masked.classes:
                raise ProtocolError(
                    f"round {masked.server_round} was opened before, and is asked for with other layers"
                )
            if same:
                return
        write_atomically(self._round_file, masked.model_dump_json())


def _text(bundle: bytes) -> str:
    return base64.b64encode(bundle).decode()


def _bytes(bundle: str, sender: str) -> bytes:
    try:
        return base64.b64decode(bundle, validate=True)
    except binascii.Error:
        raise ProtocolError(f"the shares of node {sender} are malformed") from None
