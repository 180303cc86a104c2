"""Log of what leaves a node: one JSON line per reply, written before the reply is sent.

A line holds names, sizes and digests, never values. It carries the digest of the line before it, so a line that is
changed or removed later is noticed. This module imports no training library: what reads the log has none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fednnunet.audit.chain import append_line
from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import SharedArrays, num_bytes
from fednnunet.exchange.channel import Reply, Request
from fednnunet.exchange.messages import (
    REQUESTS,
    Body,
    Failure,
    FingerprintRequest,
    Kind,
    Model,
    PlanRequest,
    ScoreModelsRequest,
    SendModelRequest,
    TrainRequest,
    UnmaskRequest,
    parse_body,
)
from fednnunet.files import DISK_FULL

log = logging.getLogger(__name__)

AUDIT_LOG = "audit.jsonl"
EXPANDED_FIELDS = ("fingerprint", "intensity_ranges", "counts")
"""Fields of bodies whose parts are listed one by one: what describes the images."""


class FieldSize(BaseModel):
    """Size of a field that left.

    Attributes:
        bytes: size as JSON.
        numbers: how many numbers it holds.
    """

    model_config = ConfigDict(frozen=True)

    bytes: int
    numbers: int


class Tensor(BaseModel):
    """An array that left: its dtype, shape and size."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: list[int]
    bytes: int


class Entry(BaseModel):
    """One line of the log: a reply that was about to leave.

    Attributes:
        time: time in UTC, ISO 8601.
        node: name of the node.
        run: id of the run, where the log holds several.
        kind: kind of the message that is answered.
        asked: what the server asked for, in brief.
        ok: whether the node did what was asked.
        reason: message that left instead, where it did not.
        bytes: size of body and arrays.
        body_sha256: digest of the body.
        arrays_sha256: digest of the arrays, each padded with zeros to a multiple of 64 bytes; None without arrays.
        withheld: number of replies kept back since the line before because the log could not be written; a
            :class:`~fednnunet.exchange.messages.Failure` of one fixed text went instead of each.
        repaired: number of bytes of a torn line that were cut off before this one was written.
        previous: digest of the line before, without its end of line; None for the first.
        fields: sizes of the body's fields; those of :data:`EXPANDED_FIELDS` by their parts.
        scores: number of rows of scores of single cases, in an answer to ``evaluate``.
        means: number of means of scores over cases, in the same.
        digests: number of salted digests of images, in an answer to ``query.fingerprint`` that has them.
        layers: layers of the network that the node planned, name to shape, in an answer to ``query.plan``.
        tensors: the arrays that left, by name.
        masked: fewest nodes of a class whose layers were masked, or of a sum that was opened.
    """

    model_config = ConfigDict(frozen=True)

    time: str
    node: str
    run: str | None = None
    kind: Kind
    asked: dict[str, bool | int | str] = {}
    ok: bool
    reason: str | None = None
    bytes: int
    body_sha256: str
    arrays_sha256: str | None = None
    withheld: int = 0
    repaired: int = 0
    previous: str | None = None
    fields: dict[str, FieldSize]
    scores: int | None = None
    means: int | None = None
    digests: int | None = None
    layers: dict[str, list[int]] | None = None
    tensors: dict[str, Tensor] = {}
    masked: int | None = None


class AuditLog:
    """Appends to a node's log; one process at a time.

    A line reaches the disk before its reply leaves, so what left is in the log whatever happens. A crash or a full
    disk can tear the last line; the reply that it describes has not left then. The next append cuts off the torn line,
    records that in ``repaired``, and continues from the last complete line, so the chain holds.

    Args:
        path: file of the log; created with mode 0600 where it does not exist.
        node: name of the node.
        run: id of the run, where one log holds several.
    """

    def __init__(self, path: Path, node: str, run: str | None = None) -> None:
        self.path = path
        self.node = node
        self.run = run
        self._last: str | None = None
        self._withheld = self._repaired = 0

    def record(self, request: Request, reply: Reply) -> Failure | None:
        """Append ``reply`` to the log.

        Returns:
            What to send instead, where the log cannot be written.
        """
        try:
            self._append(_described(request, reply))
        except OSError as error:
            self._withheld += 1
            log.error("%s cannot be written (%s): a reply to %s is kept back", self.path, error, request.kind)
            reason = f"the log of what leaves it cannot be written ({error.strerror}); nothing does until it can"
            kind: Literal["unavailable", "config"] = "unavailable" if error.errno in DISK_FULL else "config"
            return Failure(reason=f"node {self.node}: {reason}, look at its disk", error=kind)
        return None

    def _append(self, described: dict[str, Any]) -> None:
        def line_after(previous: str | None, torn: int) -> bytes:
            self._repaired += torn
            more = {"previous": previous, "withheld": self._withheld, "repaired": self._repaired}
            entry = Entry(node=self.node, run=self.run, **described | more)
            return entry.model_dump_json(exclude_defaults=True).encode()

        self._last = append_line(self.path, line_after, self._last)
        self._withheld = self._repaired = 0


# content of a line -----------------------------------------------------------------------------------


def _described(request: Request, reply: Reply) -> dict[str, Any]:
    """Fields of an :class:`Entry` that describe one reply."""
    body, content, tensors = reply.body.encode(), json.loads(reply.body), _tensors(reply.arrays)
    asked, masked = _asked(request)
    scores = [*content["cases"], *content.get("personal", [])] if reply.ok and "cases" in content else None
    means = sum("num_cases" in row for row in scores or [])
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "kind": request.kind,
        "asked": asked,
        "ok": reply.ok,
        "reason": None if reply.ok else content["reason"],
        "bytes": len(body) + sum(tensor.bytes for tensor in tensors.values()),
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "arrays_sha256": None if reply.arrays is None else reply.arrays.sha256(),
        "fields": dict(_fields(content)),
        "scores": None if scores is None else len(scores) - means,
        "means": means or None,
        "digests": len(content["image_digests"]) if content.get("image_digests") is not None else None,
        "layers": content["layers"] if reply.ok and request.kind is Kind.PLAN else None,
        "tensors": tensors,
        "masked": masked if reply.ok else None,
    }


def _tensors(arrays: SharedArrays | None) -> dict[str, Tensor]:
    if arrays is None:
        return {}
    return {
        name: Tensor(dtype=array.dtype, shape=array.shape, bytes=num_bytes(array.shape, array.dtype))
        for name, array in arrays.layout.arrays.items()
    }


def _fields(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, FieldSize]]:
    for name, value in content.items():
        path = prefix + name
        if isinstance(value, dict) and (prefix or name in EXPANDED_FIELDS):
            yield from _fields(value, f"{path}.")
        elif value is not None:
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            yield path, FieldSize(bytes=len(text.encode()), numbers=_numbers(value))


def _numbers(value: Any) -> int:
    if isinstance(value, list | dict):
        return sum(map(_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _asked(request: Request) -> tuple[dict[str, bool | int | str], int | None]:
    """What was asked in brief; fewest nodes of a class or an opened sum, None where layers are not masked."""
    try:
        body: Body = parse_body(REQUESTS[request.kind], request.body, "the server")
    except ProtocolError:
        return {"malformed": True}, None
    asked = body.model_dump(include={"content", "fold", "server_round"})
    if isinstance(body, FingerprintRequest) and body.salt is not None:
        asked["image_digests"] = True
    if isinstance(body, PlanRequest):
        asked["fingerprint"] = "own" if body.fingerprint is None else "federated"
    if isinstance(body, TrainRequest):
        asked["dtype"] = body.dtype
    if isinstance(body, TrainRequest | SendModelRequest) and body.layers:
        asked["layers"] = len(body.layers)
    if isinstance(body, Model):
        asked["model"] = body.node
    if isinstance(body, ScoreModelsRequest):
        asked["models"] = ", ".join(body.models)
    nodes: list[list[str]] = []
    if isinstance(body, UnmaskRequest):  # of a class, not all may have arrived
        asked["arrived"] = ", ".join(sorted({name for names in body.arrived for name in names}))
        nodes = [names for names in body.arrived if names]
    if isinstance(body, TrainRequest):
        nodes = [one.members for one in body.classes]
    return asked, min(map(len, nodes), default=None)
