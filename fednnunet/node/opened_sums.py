"""What a node keeps of secure sums on its disk: what its masks depend on, and for whom it has opened a round.

Its layers of a round are the same when it is trained again, or nearly. So whatever the server says of that round later,
its sums are opened for the same classes, arrivals and shares only: the difference of two sums would be one node's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import Fold
from fednnunet.files import append_atomically


class MaskedClass(BaseModel):
    """What the masks of a class depended on.

    Attributes:
        members: names of its nodes, sorted.
        layers: names of its layers at this node.
        digest: of all that the server says and the layers depend on.
    """

    members: list[str]
    layers: list[str]
    digest: str


class MaskedRound(BaseModel):
    """The last round whose layers were sent.

    Attributes:
        fold: fold of the round.
        server_round: the round.
        after: the last round before it that the node has trained; 0 for none.
        settings: what else the server said that the layers, or their weight, depend on.
        classes: class by class.
    """

    fold: Fold
    server_round: int
    after: int
    settings: str
    classes: list[MaskedClass]

    def is_of(self, other: MaskedRound) -> bool:
        """Whether both are one round of the same classes and settings, whatever it started from."""
        started_from: Any = {"after": True, "classes": {"__all__": {"digest"}}}
        mine, theirs = (one.model_dump(exclude=started_from) for one in (self, other))
        return bool(mine == theirs)

    def shared(self, name: str, peer: str) -> str:
        """Digest of all that two members were both told and sent, in whatever class."""
        of_both = [one.digest for one in self.classes if {name, peer} <= set(one.members)]
        return sha256(json.dumps(of_both).encode()).hexdigest()


class OpenedRound(BaseModel):
    """For whom a round was opened.

    Attributes:
        fold: fold of the round.
        after: the last round before it that the node has trained.
        classes: members and layers of each class.
        arrived: number of a class to those whose layers are in its sum.
        shares: digest of the context of a class to that of the shares that were read.
    """

    fold: Fold
    after: int
    classes: list[tuple[list[str], list[str]]]
    arrived: dict[int, list[str]] = {}
    shares: dict[str, str] = {}


class OpenedSums:
    """The rounds of a run that a node has opened, in a file.

    Args:
        path: the file, which the first round makes.
        name: name of the node, for errors.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._rounds = {key: OpenedRound.model_validate(opened) for key, opened in map(json.loads, lines)}

    def hold_to(self, masked: MaskedRound, arrived: dict[int, list[str]], shares: Mapping[str, str]) -> None:
        """Write down that sums are opened, before what opens them leaves; the same may be opened again.

        Args:
            masked: the round.
            arrived: number of a class to those whose layers are in its sum.
            shares: as in :class:`OpenedRound`.

        Raises:
            ProtocolError: the round was opened for other classes, arrivals or shares, or under another number.
        """
        key = f"{masked.fold} {masked.server_round}"
        classes = [(one.members, one.layers) for one in masked.classes]
        new = OpenedRound(fold=masked.fold, after=masked.after, classes=classes)
        before = self._rounds.get(key, new)
        if before.classes != classes or any(before.arrived.get(n, names) != names for n, names in arrived.items()):
            raise ProtocolError(f"node {self._name} has opened round {masked.server_round} for other nodes before")
        if any(before.shares.get(context, digest) != digest for context, digest in shares.items()):
            raise ProtocolError(f"node {self._name} has opened round {masked.server_round} with other shares before")
        for other, opened in self._rounds.items():  # another number of the same training
            if other != key and (opened.fold, opened.after) == (masked.fold, masked.after):
                raise ProtocolError(f"node {self._name} has opened another round after round {masked.after} before")
        now = new.model_copy(update={"arrived": before.arrived | arrived, "shares": {**before.shares, **shares}})
        if now != self._rounds.get(key):
            append_atomically(self._path, json.dumps([key, now.model_dump(mode="json")]) + "\n")
            self._rounds[key] = now
