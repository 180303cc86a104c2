"""What a worker was asked before training, on disk: one that is started again does it again, from its caches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fednnunet.exchange.messages import REQUESTS, Body, Kind, parse_body
from fednnunet.files import write_atomically

STAGES = (Kind.FINGERPRINT, Kind.PLAN, Kind.PREPROCESS)
"""Before training, in order."""


class RequestHistory:
    """Requests of the stages before training.

    Args:
        path: of the file that keeps them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: set[Kind] = set()
        self._known: dict[str, str] = {}
        if path.is_file():
            self._known = json.loads(path.read_text(encoding="utf-8"))

    def before(self, kind: Kind) -> Iterator[tuple[Kind, Body]]:
        """Stages before ``kind`` that another worker has done, and this one has not."""
        for stage in STAGES[: STAGES.index(kind) if kind in STAGES else len(STAGES)]:
            if stage not in self._done and stage in self._known:
                yield stage, parse_body(REQUESTS[stage], self._known[stage], f"{self._path.name}")

    def done(self, kind: Kind, body: Body) -> None:
        """This worker has done what was asked."""
        self._done.add(kind)
        text = body.model_dump_json()
        if self._known.get(kind) != text:
            self._known[kind] = text
            write_atomically(self._path, json.dumps(self._known))
