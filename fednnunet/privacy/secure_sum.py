"""Sums that hide their addends from who adds them up (Bonawitz et al. 2017, "Practical secure aggregation").

Layers that the same nodes have form a *class*. For each class and round, member *i* masks its integers twice::

    y_i = x_i + mask(b_i) + sum_{j > i} mask(s_ij) - sum_{j < i} mask(s_ij)        (modulo 2**32)

``s_ij`` is known to *i* and *j*, so these masks cancel in the sum of all; ``b_i`` is *i*'s own. Beside ``y_i`` go
shares of ``b_i`` and of every ``s_ij``, one for each member, which that member alone can read. The server says whose
``y`` arrived. Members then give their shares of ``b_j`` for those, and of ``s_jv`` for each *v* whose ``y`` is missing;
never both, and once per round. So the server learns one sum, of those that it named.

Seeds depend on the digest of what a node was sent, those of a pair on that of all that both were sent: if the server
sends different models to different nodes, or has them train differently, the masks do not cancel (Pasquini, Francati,
Ateniese 2022). All is derived from keys on disk and the layers themselves: asked again, a node sends the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fednnunet.errors import ProtocolError
from fednnunet.privacy.masks import add_mask, derive_seed
from fednnunet.privacy.shares import SHARE_BYTES, combine, split

NONCE_BYTES = 12


@dataclass(frozen=True)
class SumRules:
    """How many must take part.

    Attributes:
        colluding: members that may help a curious server.
        min_group: fewest members of a class, and fewest whose layers are added up.
    """

    colluding: int = 1
    min_group: int = 3

    def threshold(self, members: int) -> int:
        """Shares that open a seed: so many that two different sets of arrivals cannot both be opened."""
        return (members + self.colluding) // 2 + 1

    def fewest_arrivals(self, members: int) -> int:
        """Fewest members of a class whose layers are added up; at least two of them are honest."""
        return max(self.threshold(members), self.min_group, self.colluding + 2)


@dataclass(frozen=True)
class SumContext:
    """What the seeds of a class in a round depend on.

    Attributes:
        run: id of the run.
        fold: the fold.
        server_round: the round, from 1.
        members: names of the class's nodes, sorted.
        received: SHA-256 of the arrays of the class as the node was sent them, and of what else the server said of the
            round, in hexadecimal.
    """

    run: str
    fold: str
    server_round: int
    members: tuple[str, ...]
    received: str

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        return sha256(json.dumps(dataclasses.astuple(self)).encode()).hexdigest()

    def seed(self, secret: bytes, *purpose: str) -> bytes:
        """A seed for ``purpose`` in this context."""
        return derive_seed(secret, self.digest, *purpose)

    def place(self, name: str) -> int:
        """Place of a member, from 1, for its shares."""
        return self.members.index(name) + 1


class SumMember:
    """A node's part in sums.

    Args:
        name: name of the node.
        own: 32 secret bytes of this node for the run.
        pairs: name of each other node to the secret shared with it.
        rules: how many must take part.
    """

    def __init__(self, name: str, own: bytes, pairs: Mapping[str, bytes], rules: SumRules) -> None:
        self.name, self._own, self._pairs, self._rules = name, own, dict(pairs), rules

    def bound_to(self, shared: Callable[[str], str]) -> SumMember:
        """The same member, whose secret with each other depends on what it shares with it, by name."""
        pairs = {peer: derive_seed(secret, "bound", shared(peer)) for peer, secret in self._pairs.items()}
        return SumMember(self.name, self._own, pairs, self._rules)

    def mask(self, arrays: Sequence[np.ndarray], context: SumContext) -> dict[str, bytes]:
        """Mask the int32 arrays of a class, in place.

        Returns:
            Member to this node's shares for it, which no one else can read; one for this node itself, too.

        Raises:
            ProtocolError: the class has too few members, one without a key, or not this node.
        """
        self._check(context)
        peers = [peer for peer in context.members if peer != self.name]
        # Layers trained again may differ in their last bits, and two of them must never have the same mask.
        own_seed = context.seed(self._own, "own", digest_of(arrays))
        pair_seeds = [context.seed(self._pairs[peer], "pair") for peer in peers]
        for number, array in enumerate(arrays):
            add_mask(array, derive_seed(own_seed, number))
            for peer, seed in zip(peers, pair_seeds, strict=True):
                add_mask(array, derive_seed(seed, number), pair_sign(self.name, peer))
        threshold = self._rules.threshold(len(context.members))
        places = [context.place(name) for name in context.members]
        shares = [
            split(seed, places, threshold, derive_seed(self._own, "shares", seed.hex()))
            for seed in (own_seed, *pair_seeds)
        ]
        return {
            name: self._seal(b"".join(share[context.place(name)] for share in shares), name, context)
            for name in context.members
        }

    def mask_for_all(self, array: np.ndarray, members: Sequence[str], *purpose: str) -> None:
        """Mask an int32 array in place so that only the sum over all members opens it: there are no shares.

        Args:
            array: changed in place.
            members: names of the nodes, sorted.
            purpose: what the array is; the same at all members, else the masks do not cancel.

        Raises:
            ProtocolError: too few members, one without a key, or not this node.
        """
        fewest = max(self._rules.min_group, self._rules.colluding + 2)
        if self.name not in members or list(members) != sorted(set(members)) or len(members) < fewest:
            raise ProtocolError(
                f"counts of {', '.join(members)} are not added up: it takes {fewest} nodes, this one too"
            )
        for peer in members:
            if peer != self.name:
                self._check_key(peer)
                seed = derive_seed(self._pairs[peer], "for all", len(members), *members, *purpose)
                add_mask(array, seed, pair_sign(self.name, peer))

    def unmask(
        self, context: SumContext, arrived: Sequence[str], bundles: Mapping[str, bytes]
    ) -> dict[str, dict[str, bytes]]:
        """This node's shares of what has to be subtracted from the sum of the arrivals.

        The caller sees to it that this is answered for one set of arrivals in a round.

        Args:
            context: of the class.
            arrived: members whose layers are in the sum.
            bundles: arrival to its bundle for this node.

        Returns:
            Arrival *j* to shares of its own seed (under *j*), and of those with missing members *v* (under *v*).

        Raises:
            ProtocolError: too few arrivals, this node is none of them, or a bundle that was not made for this.
        """
        self._check(context)
        fewest = self._rules.fewest_arrivals(len(context.members))
        if self.name not in arrived or len(set(arrived) & set(context.members)) < max(fewest, len(arrived)):
            raise ProtocolError(
                f"the sum over {', '.join(arrived)} is not opened: it takes {fewest} members of the class, this node "
                "among them"
            )
        missing = [name for name in context.members if name not in arrived]
        opened: dict[str, dict[str, bytes]] = {}
        for arrival in arrived:
            shares = self._open(arrival, bundles.get(arrival, b""), context)
            opened[arrival] = {name: shares[name] for name in (arrival, *missing)}
        return opened

    def _seal(self, text: bytes, reader: str, context: SumContext) -> bytes:
        nonce = derive_seed(self._own, "nonce", reader, sha256(text).hexdigest())[:NONCE_BYTES]
        return nonce + self._cipher(reader, self.name, context).encrypt(nonce, text, None)

    def _open(self, sender: str, bundle: bytes, context: SumContext) -> dict[str, bytes]:
        nonce, sealed = bundle[:NONCE_BYTES], bundle[NONCE_BYTES:]
        try:
            text = self._cipher(self.name, sender, context).decrypt(nonce, sealed, None)
        except (InvalidTag, ValueError):
            raise ProtocolError(f"the shares of node {sender} are not for this node, round and class") from None
        shares = [text[start : start + SHARE_BYTES] for start in range(0, len(text), SHARE_BYTES)]
        names = [sender, *(peer for peer in context.members if peer != sender)]
        if len(shares) != len(names):
            raise ProtocolError(f"node {sender} sent {len(shares)} shares for {len(names)} members")
        return dict(zip(names, shares, strict=True))

    def _check(self, context: SumContext) -> None:
        members = context.members
        if self.name not in members or list(members) != sorted(set(members)):
            raise ProtocolError(f"a class of {', '.join(members)} is none of node {self.name}")
        fewest = self._rules.fewest_arrivals(len(members))
        if len(members) < fewest:
            raise ProtocolError(f"a class of {len(members)} members is not added up: it takes {fewest}")
        for name in members:
            if name != self.name:
                self._check_key(name)

    def _check_key(self, name: str) -> None:
        if name not in self._pairs:
            raise ProtocolError(f"node {name} has no key in this run")

    def _cipher(self, reader: str, writer: str, context: SumContext) -> ChaCha20Poly1305:
        """Cipher of the bundles that ``writer`` makes for ``reader`` in this context."""
        peer = writer if reader == self.name else reader
        secret = self._own if peer == self.name else self._pairs[peer]
        return ChaCha20Poly1305(context.seed(secret, "bundle", writer, reader))


def digest_of(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 of the types, shapes and values of ``arrays``, in hexadecimal."""
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def pair_sign(name: str, peer: str) -> int:
    """Sign of a pair's mask in the sum of ``name``; that of ``peer`` has the other."""
    return 1 if name < peer else -1


def remove_masks(
    totals: Sequence[np.ndarray],
    members: Sequence[str],
    arrived: Sequence[str],
    shares: Mapping[str, Mapping[str, Mapping[str, bytes]]],
    rules: SumRules,
) -> None:
    """Subtract, in place, what is left of the masks in the sums of a class.

    Args:
        totals: int32 arrays: the sums over ``arrived``, modulo 2**32, in the order in which members mask.
        members: names of the class's nodes, sorted.
        arrived: those whose layers are in the sums.
        shares: member to what it replied (:meth:`SumMember.unmask`).
        rules: how many must take part.

    Raises:
        ProtocolError: too few members replied, or a share is malformed.
    """
    threshold = rules.threshold(len(members))
    missing = [name for name in members if name not in arrived]
    for arrival in arrived:
        for other in (arrival, *missing):
            held = {
                members.index(holder) + 1: given[arrival][other]
                for holder, given in shares.items()
                if other in given.get(arrival, {})
            }
            seed = combine(held, threshold)
            sign = 1 if other == arrival else pair_sign(arrival, other)
            for number, total in enumerate(totals):
                add_mask(total, derive_seed(seed, number), -sign)
