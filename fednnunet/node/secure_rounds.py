"""A node's part in secure sums: its key for the run, masked layers, and shares that open a round's sums, once.

What must outlive the worker is on disk before anything that depends on it leaves: the key for the run, what the masks
of the last round depend on, and which arrivals its sums were opened for.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fednnunet.config.groups import Config
from fednnunet.config.privacy import SecureSumsConfig
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.arrays import Spec
from fednnunet.exchange.messages import (
    FingerprintRequest,
    Fold,
    PreprocessRequest,
    SignedKey,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)
from fednnunet.exchange.update_limit import RoundReference, UpdateLimit
from fednnunet.files import write_atomically, write_private
from fednnunet.node.opened_sums import MaskedClass, MaskedRound, OpenedSums
from fednnunet.node.settings import OPENED_SUMS, SECURE_KEY, SECURE_ROUND, NodeIdentity
from fednnunet.privacy.figures import FIGURE_NAMES, FIGURES, to_array, without_figures
from fednnunet.privacy.identity import pair_secrets, sign_key, verify_key
from fednnunet.privacy.masks import derive_seed
from fednnunet.privacy.ring import FixedPoint
from fednnunet.privacy.secure_sum import SumContext, SumMember, SumRules, digest_of

log = logging.getLogger(__name__)

LIMIT_KEY = "privacy.secure_sums.max_update_norm"
SAME_AT_ALL = {"epochs", "proximal_mu", "most_cases"}
"""Fields of a request that make a node train or count more: unlike ones would single a node out."""


class SecureRounds:
    """A node's part in the secure sums of a run.

    Args:
        name: name of the node.
        folder: folder of the node.
        config: rules of the sums; the node's own floors are in them.
        identity: what proves to other nodes who this one is.
        training: how the node trains, which the server says.

    Raises:
        ConfigError: there is no identity.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        config: SecureSumsConfig,
        identity: NodeIdentity | None,
        training: Sequence[Config | None] = (),
    ) -> None:
        if identity is None:
            raise ConfigError(f"node {name}: secure sums need a certificate of the node's key")
        self.name, self.config, self.identity = name, config, identity
        # Also of the sums: a node to which another limit was told would count for more, or alone.
        self._settings = [None if one is None else one.model_dump_json() for one in (config, *training)]
        self.rules = SumRules(config.colluding, config.min_group)
        self._key_file, self._round_file = folder / SECURE_KEY, folder / SECURE_ROUND
        self._opened_file = folder / OPENED_SUMS
        self._member: SumMember | None = None
        self._run = ""
        self._started: MaskedRound | None = None
        self._opened = OpenedSums(self._opened_file, name)
        self._limit = UpdateLimit(config.max_update_norm, key=LIMIT_KEY)
        self._unsent: tuple[Fold, int, str] | None = None

    # keys ------------------------------------------------------------------------------------------------

    def signed_key(self, run: str) -> SignedKey:
        """The node's key for a run, made when it is first asked for."""
        identity = load_ssh_private_key(self.identity.key.read_bytes(), None)
        certificate = self.identity.certificate.read_text(encoding="ascii")
        return sign_key(self._key(run), self.name, run, identity, certificate)  # type: ignore[arg-type]

    def join(self, request: FingerprintRequest | PreprocessRequest) -> SumMember:
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
        secret = derive_seed(own.private_bytes_raw(), "own secrets")
        self._member = SumMember(self.name, secret, pair_secrets(own, keys, run), self.rules)
        self._run = run
        return self._member

    def _key(self, run: str) -> X25519PrivateKey:
        if self._key_file.is_file():
            stored = json.loads(self._key_file.read_text())
            if stored["run"] == run:
                return X25519PrivateKey.from_private_bytes(bytes.fromhex(stored["key"]))
            if self._round_file.is_file():  # the same layers could be opened for other nodes
                raise ProtocolError(f"node {self.name} has sent layers with keys of another run; start a new run")
        key = X25519PrivateKey.generate()
        write_private(self._key_file, json.dumps({"run": run, "key": key.private_bytes_raw().hex()}).encode())
        return key

    # rounds ----------------------------------------------------------------------------------------------

    def start_fold(self) -> None:
        """Forget which updates are usual."""
        self._limit.begin_fold()

    def start_round(self, request: TrainRequest, received: Mapping[str, np.ndarray], after: int) -> None:
        """Take note of what the round starts from, which its masks depend on.

        Args:
            request: the round's.
            received: layers that it starts from.
            after: the last round of the fold that the node has trained; 0 for none.

        Raises:
            ProtocolError: classes that are not summed, a layer that is asked for in clear, or one that is sent and in
                no class.
        """
        self._check_classes(request)
        if not request.layers:  # nothing is exchanged
            return
        masked = _masked_layers(request)
        for layer, array in received.items():
            if layer not in masked and array.dtype.kind == "f":
                raise ProtocolError(f"the server sends layer {layer}, which is in no class: no mask would depend on it")
        self._started = self._round_of(request, received, after)

    def end_round(
        self, request: TrainRequest, received: Mapping[str, np.ndarray], trained: Mapping[str, np.ndarray]
    ) -> None:
        """Take note of how much the round has changed the layers: an update that is too large is not sent.

        The server cannot see the update of one node, which would make the average useless for all.

        Args:
            request: the round's.
            received: layers that it started from.
            trained: layers that the optimizer trains, after it.
        """
        reference = RoundReference({layer: array for layer, array in received.items() if layer in trained})
        self._unsent = None
        try:
            norm = reference.validate_and_measure(trained, {layer: layer for layer in trained}, f"node {self.name}")
            norms = [] if norm is None else [norm]
            if problem := self._limit.problem(norm, norms):
                log.warning("node %s %s", self.name, problem)
                raise ProtocolError(
                    f"node {self.name} has changed its layers much more than is usual for it, and does not send them "
                    f"({LIMIT_KEY}); its log says how much"
                )
            self._limit.end_round(norms)
        except ProtocolError as problem:
            self._unsent = request.fold, request.server_round, str(problem)

    def spec(self, layers: Spec, request: TrainRequest) -> Spec:
        """Arrays that leave in a round: integers of the ring, and counters as they are."""
        masked, ring = _masked_layers(request), np.dtype(np.int32)
        wire = {layer: (shape, ring if layer in masked else dtype) for layer, (shape, dtype) in layers.items()}
        return {**wire, FIGURES: ((2 * len(FIGURE_NAMES),), ring)}

    def mask(
        self,
        request: TrainRequest,
        layers: Mapping[str, np.ndarray],
        reply: TrainReply,
        out: Mapping[str, np.ndarray],
    ) -> TrainReply:
        """Write the masked ``layers`` of a finished round into ``out``; asked again, the same.

        Args:
            request: the round's.
            layers: the node's layers after the round.
            reply: its figures.
            out: arrays of :meth:`spec`.

        Returns:
            ``reply`` without figures of this node, and with its shares.

        Raises:
            ProtocolError: other classes than the round had, or values that cannot be written as integers.
        """
        self._check_classes(request)
        if self._unsent is not None and self._unsent[:2] == (request.fold, request.server_round):
            raise ProtocolError(self._unsent[2])
        masked = self._masked_round(request)
        member = self._member_for(masked)
        shares: list[dict[str, str]] = []
        masked_layers = _masked_layers(request)
        weight = 1.0 if request.most_cases is None else reply.num_examples / request.most_cases
        for layer in layers.keys() - masked_layers:
            if layers[layer].dtype.kind == "f":
                raise ProtocolError(f"the server asks for layer {layer} in clear, which is summed securely here")
            np.copyto(out[layer], layers[layer])
        for number, (one, of_class) in enumerate(zip(request.classes, masked.classes, strict=True)):
            if self.name not in one.members:
                shares.append({})
                continue
            point = FixedPoint(len(one.members), self.config.limit)
            for layer in one.layers:
                point.encode(layers[layer], weight, out[layer], f"layer {layer} of node {self.name}")
            arrays = [out[layer] for layer in one.layers]
            if number == 0:
                point.encode(to_array(reply), 1.0, out[FIGURES], f"figures of node {self.name}")
                arrays.append(out[FIGURES])
            context = self._context(request.fold, request.server_round, of_class)
            shares.append({peer: _text(bundle) for peer, bundle in member.mask(arrays, context).items()})
        write_atomically(self._round_file, masked.model_dump_json())
        return without_figures(reply).model_copy(update={"shares": shares})

    def _round_of(self, request: TrainRequest, received: Mapping[str, np.ndarray], after: int) -> MaskedRound:
        """The round, with digests of what a class's layers depend on: where they are unlike, masks stay."""
        settings, classes = json.dumps([request.model_dump_json(include=SAME_AT_ALL), *self._settings]), []
        for one in request.classes:
            arrays = digest_of([received[layer] for layer in one.layers if layer in received])
            digest = sha256(json.dumps([arrays, settings]).encode()).hexdigest()
            classes.append(MaskedClass(members=one.members, layers=one.layers, digest=digest))
        return MaskedRound(
            fold=request.fold, server_round=request.server_round, after=after, settings=settings, classes=classes
        )

    def _check_classes(self, request: TrainRequest) -> None:
        if not request.layers and not request.classes:
            return
        in_classes = [layer for one in request.classes for layer in one.layers]
        if len(set(in_classes)) < len(in_classes) or not set(in_classes) <= set(request.layers):
            raise ProtocolError("the server asks for a layer in two classes, or in none of the round")
        if len({tuple(one.members) for one in request.classes}) < len(request.classes):
            raise ProtocolError("the server asks for two classes of the same nodes, whose masks would be the same")
        if not request.classes or self.name not in request.classes[0].members:
            raise ProtocolError("the server asks for layers in clear, which are summed securely here")
        foreign = [one for one in request.classes if one.layers and self.name not in one.members]
        if foreign:
            raise ProtocolError(f"the server asks for layers of a class that node {self.name} is not in")

    def _masked_round(self, request: TrainRequest) -> MaskedRound:
        """What the masks of a finished round depend on: noted when it started, or on disk if that was before.

        Raises:
            ProtocolError: nothing is known of it, or it had other classes or settings.
        """
        asked = self._round_of(request, {}, 0)
        for known in (self._started, self._last_round()):
            if known is not None and known.is_of(asked):
                return known
        raise ProtocolError(
            f"node {self.name} does not know what the masks of round {request.server_round} depend on; train it again"
        )

    def unmask(self, request: UnmaskRequest) -> UnmaskReply:
        """Shares that open the sums of the last round; each sum for one set of arrivals, however often it is asked for.

        Raises:
            ProtocolError: another round, other arrivals than before, or too few.
        """
        last = self._last_round()
        if last is None or (last.fold, last.server_round) != (request.fold, request.server_round):
            raise ProtocolError(f"node {self.name} has sent no layers of round {request.server_round} to be opened")
        if not len(request.arrived) == len(request.shares) == len(last.classes):
            raise ProtocolError(f"the round has {len(last.classes)} classes, the request {len(request.arrived)}")
        member = self._member_for(last)
        opened: list[dict[str, dict[str, str]]] = []
        sets: dict[int, list[str]] = {}
        read: dict[str, str] = {}
        classes = zip(last.classes, request.arrived, request.shares, strict=True)
        for number, (masked, arrived, bundles) in enumerate(classes):
            if not arrived:
                opened.append({})
                continue
            context, names = self._context(last.fold, last.server_round, masked), sorted(arrived)
            shares = member.unmask(context, names, {name: _bytes(sealed, name) for name, sealed in bundles.items()})
            sets[number] = names
            read[context.digest] = sha256(json.dumps([bundles[name] for name in names]).encode()).hexdigest()
            opened.append({name: {of: share.hex() for of, share in given.items()} for name, given in shares.items()})
        self._opened.hold_to(last, sets, read)
        return UnmaskReply(shares=opened)

    def _member_for(self, masked: MaskedRound) -> SumMember:
        """The member, whose secrets with others depend on all that both were told and sent in the round."""
        if self._member is None:
            raise ProtocolError("secure sums were asked for before the nodes' keys came")
        return self._member.bound_to(lambda peer: masked.shared(self.name, peer))

    def _context(self, fold: Fold, server_round: int, masked: MaskedClass) -> SumContext:
        return SumContext(self._run, str(fold), server_round, tuple(masked.members), masked.digest)

    def _last_round(self) -> MaskedRound | None:
        if not self._round_file.is_file():
            return None
        return MaskedRound.model_validate_json(self._round_file.read_bytes())


def _masked_layers(request: TrainRequest) -> set[str]:
    return {layer for one in request.classes for layer in one.layers}


def _text(bundle: bytes) -> str:
    return base64.b64encode(bundle).decode()


def _bytes(bundle: str, sender: str) -> bytes:
    try:
        return base64.b64decode(bundle, validate=True)
    except binascii.Error:
        raise ProtocolError(f"the shares of node {sender} are malformed") from None
